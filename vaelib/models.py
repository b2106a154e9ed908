"""The VAE: an encoder for q(z | x), a decoder for p(x | z), and two backbones for them.

"U-Net-style" without skip connections: the decoder mirrors the encoder, but everything it
knows about the image comes through z. With skips, p(x | z) would not be a model of x.
"""

import itertools
import math
from pathlib import Path

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn
from torch.distributions import Distribution, Normal

from vaelib import choices, files, hub
from vaelib.blocks import ConvBlock, Downsample, ResidualBlock, Upsample, group_norm
from vaelib.likelihoods import LIKELIHOODS
from vaelib.posteriors import POSTERIORS, FlowPosterior, draw
from vaelib.priors import PRIORS
from vaelib.recipes import Arguments


def bottleneck_size(image_shape, widths) -> tuple[int, int]:
    """Height and width after the stride-2 input projection and each further halving."""
    factor = 2 ** len(widths)
    return math.ceil(image_shape[1] / factor), math.ceil(image_shape[2] / factor)


def bottleneck(channels: int, n_res_blocks: int) -> nn.Sequential:
    """Pre-activation residual blocks and the activation that ends them; shape unchanged."""
    blocks = [ResidualBlock(channels) for _ in range(n_res_blocks)]
    return nn.Sequential(*blocks, group_norm(channels), nn.SiLU())


class Encoder(nn.Module):
    """x (B, C, H, W) -> mean and log-variance of q(z | x), side by side: (B, 2 D).

    Or as many parameters, `n_params`, as another posterior takes.
    """

    def __init__(self, image_shape, n_params: int, widths, n_res_blocks: int):
        super().__init__()
        h, w = bottleneck_size(image_shape, widths)
        self.conv_in = nn.Conv2d(image_shape[0], widths[0], 3, stride=2, padding=1)
        self.down_blocks = nn.Sequential()
        for narrow, wide in itertools.pairwise(widths):
            self.down_blocks.extend([ConvBlock(narrow, narrow), Downsample(narrow, wide)])
        self.mid_block = bottleneck(widths[-1], n_res_blocks)
        self.to_latent = nn.Linear(widths[-1] * h * w, n_params)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)  # (B, widths[0], H/2, W/2)
        h = self.mid_block(self.down_blocks(h))  # (B, widths[-1], h, w)
        return self.to_latent(h.flatten(1))  # (B, 2 D)


class Decoder(nn.Module):
    """z (B, D) -> the likelihood's parameters (B, n_params * C, H, W)."""

    def __init__(self, image_shape, latent_dim: int, widths, n_res_blocks: int, n_params: int):
        super().__init__()
        self.image_shape = tuple(image_shape)
        self.shape_in = (widths[-1], *bottleneck_size(image_shape, widths))
        self.from_latent = nn.Linear(latent_dim, math.prod(self.shape_in))
        self.mid_block = bottleneck(widths[-1], n_res_blocks)
        self.up_blocks = nn.Sequential()
        for wide, narrow in itertools.pairwise(reversed(widths)):
            self.up_blocks.extend([Upsample(wide, narrow), ConvBlock(narrow, narrow)])
        self.conv_out = Upsample(widths[0], n_params * image_shape[0])

    def forward(self, z: Tensor) -> Tensor:
        h = self.from_latent(z).unflatten(-1, self.shape_in)  # (B, widths[-1], h, w)
        h = h.contiguous(memory_format=torch.channels_last)
        h = self.up_blocks(self.mid_block(h))  # (B, widths[0], H/2, W/2)
        _, height, width = self.image_shape
        return self.conv_out(h)[..., :height, :width]  # sizes that do not halve evenly: crop


def tanh_layers(n_in: int, hidden: int, n_hidden: int) -> nn.Sequential:
    """`n_hidden` layers of `hidden` tanh units."""
    sizes = itertools.pairwise([n_in] + [hidden] * n_hidden)
    return nn.Sequential(*(layer for a, b in sizes for layer in (nn.Linear(a, b), nn.Tanh())))


class MLPEncoder(nn.Module):
    """Tanh hidden layers (Kingma & Welling 2014, appendix C: one): (B, C, H, W) -> (B, 2 D)."""

    def __init__(self, image_shape, n_params: int, hidden: int, n_hidden: int):
        super().__init__()
        self.hidden = tanh_layers(math.prod(image_shape), hidden, n_hidden)
        self.to_latent = nn.Linear(hidden, n_params)

    def forward(self, x: Tensor) -> Tensor:
        return self.to_latent(self.hidden(x.flatten(1)))


class MLPDecoder(nn.Module):
    """Tanh hidden layers (Kingma & Welling 2014, appendix C: one): (B, D) -> (B, n C, H, W)."""

    def __init__(self, image_shape, latent_dim: int, hidden: int, n_hidden: int, n_params: int):
        super().__init__()
        self.shape_out = (n_params * image_shape[0], *image_shape[1:])
        self.hidden = tanh_layers(latent_dim, hidden, n_hidden)
        self.to_image = nn.Linear(hidden, math.prod(self.shape_out))

    def forward(self, z: Tensor) -> Tensor:
        return self.to_image(self.hidden(z)).unflatten(-1, self.shape_out)


class VAE(nn.Module, PyTorchModelHubMixin):
    """p(x, z) = p(z) p(x | z), with q(z | x) = N(z; mu(x), diag sigma^2(x)) or a flow of it.

    `image_shape` is (C, H, W), and the decoder returns exactly this size; the other arguments
    are explained in `vaelib.recipes.ModelConfig`.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        latent_dim: int = 2,
        backbone: str = "unet",
        widths: tuple[int, ...] = (32, 64),
        n_res_blocks: int = 1,
        hidden: int = 500,
        n_hidden: int = 1,
        likelihood: str = "bernoulli",
        sigma: float = 0.5,
        likelihood_args: Arguments | None = None,
        prior: str = "standard",
        prior_args: Arguments | None = None,
        posterior: str = "normal",
        posterior_args: Arguments | None = None,
    ):
        config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        super().__init__()
        self._hub_mixin_config = config = files.plain(config)  # what is saved as config.json
        image_shape, widths = tuple(config["image_shape"]), config["widths"]
        latent_dim, sigma = config["latent_dim"], config["sigma"]
        n_res_blocks, hidden, n_hidden = (config[k] for k in ("n_res_blocks", "hidden", "n_hidden"))
        if len(image_shape) != 3 or min(*image_shape, latent_dim) < 1:
            raise ValueError(
                f"image_shape {image_shape} and latent_dim {latent_dim}: "
                "give (channels, height, width) and latent_dim, all at least 1"
            )
        self.image_shape, self.latent_dim = image_shape, latent_dim
        self.likelihood_name, self.prior_name, self.posterior_name = likelihood, prior, posterior

        make = choices.choose("likelihood", likelihood, LIKELIHOODS)
        arguments = dict(config["likelihood_args"] or {})
        choices.checked(f"likelihood {likelihood}", make, arguments)
        if "sigma" in choices.own_parameters(make):
            arguments.setdefault("sigma", sigma)
        self.likelihood = make(**arguments)
        make = choices.choose("prior", prior, PRIORS)
        arguments = choices.checked(f"prior {prior}", make, config["prior_args"] or {})
        self.prior = make(latent_dim, **arguments)
        make = choices.choose("posterior", posterior, POSTERIORS)
        arguments = choices.checked(f"posterior {posterior}", make, config["posterior_args"] or {})
        self.posterior = make(latent_dim, **arguments)

        n_params = self.likelihood.n_params
        if backbone == "unet":
            if not widths or min(widths) < 1 or n_res_blocks < 0:
                raise ValueError(
                    f"widths {widths}, n_res_blocks {n_res_blocks}: give channels per level"
                )
            self.encoder = Encoder(image_shape, self.posterior.n_params, widths, n_res_blocks)
            self.decoder = Decoder(image_shape, latent_dim, widths, n_res_blocks, n_params)
        elif backbone == "mlp":
            if min(hidden, n_hidden) < 1:
                raise ValueError(f"hidden {hidden}, n_hidden {n_hidden}: give at least 1 of each")
            self.encoder = MLPEncoder(image_shape, self.posterior.n_params, hidden, n_hidden)
            self.decoder = MLPDecoder(image_shape, latent_dim, hidden, n_hidden, n_params)
        else:
            raise ValueError(f"backbone {backbone!r}; choose unet or mlp")
        if hasattr(self.prior, "belongs_to"):
            self.prior.belongs_to(self)
        self.to(memory_format=torch.channels_last)  # in which convolutions are faster

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
    ) -> "VAE":
        """Load a folder with config.json and model.safetensors, or a Hugging Face hub id.

        Stricter than the mixin: an unknown key of the config, a missing, extra or misshapen
        weight is a CheckpointError, and no pickle is ever read.
        """
        options = {"revision": revision, "cache_dir": cache_dir, "token": token}
        options["local_files_only"] = local_files_only
        return hub.read_model(cls, pretrained_model_name_or_path, options)

    def _save_pretrained(self, save_directory: Path) -> None:
        """What the mixin's `save_pretrained` writes: the checkpoint, and a card where none is."""
        hub.write_model(self, save_directory)
        if not (card := save_directory / "README.md").exists():
            files.write_text(card, model_card(self, files.read_metrics(save_directory)))

    def encode(self, x: Tensor) -> Normal | FlowPosterior:
        """q(z | x). Shapes: x (B, C, H, W) in [0, 1] -> batch shape (B, D)."""
        if x.shape[1:] != self.image_shape:
            raise ValueError(
                f"images of shape {tuple(x.shape)}; this model takes (B, "
                + ", ".join(map(str, self.image_shape))
                + ")"
            )
        return self.posterior(self.encoder(x).float())

    def decode(self, z: Tensor) -> Distribution:
        """p(x | z). Shapes: z (B, D) or (K, B, D) -> over (B, C, H, W) or (K, B, C, H, W)."""
        if z.shape[-1] != self.latent_dim:
            raise ValueError(f"z of shape {tuple(z.shape)}; this model has D = {self.latent_dim}")
        params = self.decoder(z.reshape(-1, self.latent_dim)).float()
        return self.likelihood(params.unflatten(0, z.shape[:-1]))

    def initialise(self, std: float) -> None:
        """Draw every weight and bias from N(0, std^2), but for norms, sigmas and the prior's."""
        for part in (*self.encoder.modules(), *self.decoder.modules()):
            if isinstance(part, nn.Linear | nn.Conv2d):
                for parameter in part.parameters():
                    nn.init.normal_(parameter, 0.0, std)

    def forward(
        self, x: Tensor, eps: Tensor
    ) -> tuple[Normal | FlowPosterior, Tensor, Distribution]:
        """q(z | x), one z drawn from it by reparameterisation, and p(x | z).

        Shapes: x (B, C, H, W), eps (B, D) or (K, B, D), standard normal noise.
        """
        q_z = self.encode(x)
        z = draw(q_z, eps)  # mu + sigma * eps, of a Normal
        return q_z, z, self.decode(z)


def model_card(model: VAE, metrics: dict) -> str:
    """The README.md of a saved model: what it is, how to load it, its numbers where known."""
    config, n_parameters = model._hub_mixin_config, sum(p.numel() for p in model.parameters())
    size = " x ".join(map(str, model.image_shape))
    lines = [
        "---", "library_name: vaelib", "tags: [vae, pytorch_model_hub_mixin]", "---", "",
        "# A variational autoencoder", "",
        f"- images: {size} (channels, height, width)",
        f"- latent dimensions: {model.latent_dim}",
        f"- likelihood p(x given z): {model.likelihood_name}; prior p(z): {model.prior_name}; "
        f"posterior q(z given x): {model.posterior_name}",
        f"- {n_parameters:,} parameters; backbone {config['backbone']}", "",
        "## Load it", "", "```python", "import vaelib", "",
        'model = vaelib.VAE.from_pretrained("FOLDER")  # this folder, or its hub id (owner/name)',
        "pictures = model.decode(model.prior.sample(16)).mean  # (16, channels, height, width)",
        "```", "", "In the shell: `vaelib info FOLDER`, `vaelib sample FOLDER`; "
        "`vaelib sample FOLDER --mode reconstruct --data images:PHOTOS` for pictures of yours.", "",
    ]  # fmt: skip
    for block in metrics.values():
        names = ("neg_elbo", "reconstruction", "kl")
        values = (f"{name} {block[name][0]:.2f}" for name in names if name in block)
        where = f"{block['n_images']:,} images of {block['data']} {block['split']}"
        lines += [f"Nats per image on {where}: {', '.join(values)}.", ""]
    return "\n".join(lines)
