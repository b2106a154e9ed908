"""A model as one page of HTML that needs no Python, no server and no network.

The decoder's weights go in as half-precision numbers; the forward pass is decoder.js, in
which every block of `vaelib.blocks` stands a second time.
"""

import base64
import html
import json
import math
import re
from pathlib import Path

import torch
from torch import Tensor, nn

from vaelib.files import write_text

INTRO = (
    "Move a slider, and the decoder of this variational autoencoder draws what belongs to that "
    "point of its latent space. The network runs here, in your browser: the page works offline."
)
SOURCES = Path(__file__).parent / "explorer"
# what decoder.js needs to know of a module, beside its parameters and children
FACTS = {
    "Linear": ("in_features", "out_features"),
    "Conv2d": ("out_channels",),
    "GroupNorm": ("num_groups", "eps"),
    "Decoder": ("shape_in", "image_shape"),
    "SiLU": (), "Tanh": (), "PixelShuffle": (), "Sequential": (), "MLPDecoder": (),
    "ConvBlock": (), "Downsample": (), "Upsample": (), "ResidualBlock": (),
}  # fmt: skip


def describe(module: nn.Module, weights: list[Tensor]) -> dict:
    """A module as decoder.js reads it; its parameters are appended to `weights`.

    Raises ValueError for a module that decoder.js does not have.
    """
    kind = type(module).__name__
    if kind not in FACTS:
        raise ValueError(f"no page can be made with a {kind}: decoder.js does not have it")
    found = {"type": kind} | {name: getattr(module, name) for name in FACTS[kind]}
    if isinstance(module, nn.Conv2d):
        if module.kernel_size != (3, 3) or module.padding != (1, 1):
            raise ValueError(f"{module}: decoder.js has 3x3 convolutions with padding 1 alone")
        found["stride"] = module.stride[0]
    for name, parameter in module.named_parameters(recurse=False):
        found[name] = placed(parameter, weights)
    children = {name: describe(child, weights) for name, child in module.named_children()}
    return found | ({"children": list(children.values())} if kind == "Sequential" else children)


def placed(tensor: Tensor, weights: list[Tensor]) -> dict:
    """Where a tensor lies among the `weights`, to which it is appended."""
    place = {"at": sum(w.numel() for w in weights), "length": tensor.numel()}
    weights.append(tensor.detach().cpu())
    return place


def describe_prior(model, weights: list[Tensor]) -> dict | None:
    """A model's learned prior as decoder.js draws from it; None for N(0, I), which it has itself.

    Raises ValueError for a prior that decoder.js does not have.
    """
    prior, kind = model.prior, type(model.prior).__name__
    if kind == "StandardNormal":
        return None
    if kind == "VampPrior":
        with torch.no_grad():
            parts = prior.components()
        return {"type": kind} | {k: placed(getattr(parts, k), weights) for k in ("loc", "scale")}
    if kind != "Flow":
        raise ValueError(
            f"no page can be made with the prior {model.prior_name}: decoder.js lacks it"
        )
    couplings = [
        {"kept": part.mask.nonzero()[:, 0].tolist(), "moved": (~part.mask).nonzero()[:, 0].tolist()}
        | {"hyper": describe(nn.Sequential(*part.hyper), weights)}
        for part in prior.flow.transform.transforms
    ]
    return {"type": kind, "bound": math.log(1e-3), "couplings": couplings}  # zuko's, of log scales


def packed(weights: list[Tensor]) -> str:
    """All weights in half precision, one after the other, as base64."""
    flat = torch.cat([w.flatten() for w in weights]).half()
    if not torch.isfinite(flat).all():
        raise ValueError("the weights are not finite in half precision; train the model again")
    return base64.b64encode(flat.numpy().astype("<f2").tobytes()).decode()


def page_likelihoods() -> list[str]:
    """Names of the likelihoods whose mean decoder.js computes: the keys of its list `means`."""
    source = (SOURCES / "decoder.js").read_text(encoding="utf-8")
    (body,) = re.findall(r"^const means = {\n(.*?)^};", source, re.DOTALL | re.MULTILINE)
    return re.findall(r"^  (\w+):", body, re.MULTILINE)


def export(name: str, output: str = "explorer.html") -> None:
    """Write a checkpoint as one page of HTML: sliders, map and decoder, with no Python behind.

    Args:
        name: a published checkpoint, or a run folder.
        output: the page.
    """
    from vaelib import widgets  # which other commands need not wait for

    model, explorer_data = widgets.of_checkpoint(name)
    size = write_page(model, explorer_data, INTRO, Path(output))
    print(f"{output}: {size / 1e6:.2f} MB; open it in a browser")


def write_page(model, explorer_data: dict, intro: str, path: Path) -> int:
    """Write the page of a model; returns its size in bytes. See `widgets.explorer_data`.

    Raises ValueError for a likelihood, a prior or a module that decoder.js does not have.
    """
    if model.likelihood_name not in (known := page_likelihoods()):
        raise ValueError(
            f"no page can be made with the likelihood {model.likelihood_name}: explorer/decoder.js "
            f"has the means of {', '.join(known)} alone"
        )
    weights: list[Tensor] = []
    net = describe(model.decoder, weights)
    net["image_shape"], prior = model.image_shape, describe_prior(model, weights)
    page = {
        "net": net, "prior": prior, "weights": packed(weights), "about": explorer_data,
        "likelihood": model.likelihood_name,
    }  # fmt: skip
    parts = {
        "title": html.escape(explorer_data["name"]), "intro": intro,
        "css": (SOURCES / "explorer.css").read_text(encoding="utf-8"),
        "decoder": (SOURCES / "decoder.js").read_text(encoding="utf-8"),
        "explorer": (SOURCES / "explorer.js").read_text(encoding="utf-8"),
        "page": json.dumps(page, allow_nan=False).replace("<", "\\u003c"),
    }  # fmt: skip
    text = (SOURCES / "page.html").read_text(encoding="utf-8")
    for name, part in parts.items():
        text = text.replace("{{" + name + "}}", part)
    write_text(path, text)
    return len(text.encode())
