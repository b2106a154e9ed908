"""What is derived from a model and its data: images, a film's frames, a density, attributes.

What takes long is kept beside the weights, and made again when what it depends on has changed.
"""

import math
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.distributions import MixtureSameFamily, Normal

from vaelib import (
    checkpoints,
    data,
    evaluation,
    files,
    latents,
    metrics,
    objectives,
    recipes,
)  # fmt: skip
from vaelib.data import Images
from vaelib.evaluation import posteriors
from vaelib.files import CheckpointError
from vaelib.samples import check, of_model

SMALL = 32 * 32  # numbers of an image: of larger ones no frames of samples are kept
MOST_FRAMES = 200  # of a run's film; then every other one goes
SHOWN = ("Smiling", "Male", "Eyeglasses", "Blond_Hair", "Young", "Bangs")  # of 40 attributes


def data_of(folder: Path) -> str:
    """The data set that a checkpoint's recipe names; CheckpointError where none is named."""
    path = folder / files.RECIPE
    recipe = files.read_recipe(folder) if path.exists() else {}
    if "data" not in recipe:
        raise CheckpointError(
            f"{path} names no data; write a line 'data: NAME' into it, or give sample --data"
        )
    name = recipe["data"]
    if name != data.absolute(name):
        raise CheckpointError(f"{path} has the folder of {name!r} in part; write its whole path")
    return name


def images_for(
    model, folder: Path, split: str = "test", fallback: bool = False, name: str | None = None
) -> Images:
    """A split of what a checkpoint's recipe names, at the model's size; val where it has no test.

    Of the data set `name`, where one is given.

    Raises CheckpointError where the recipe names no data, DataError where it can't be had.
    """
    name, (channels, *size) = name or data_of(folder), model.image_shape
    if split == "test" and split not in data.source(name).splits:
        split = "val"
    return data.load(name, split, fallback=fallback, image_size=tuple(size), channels=channels)


def measured(
    model, folder: Path, images: Images, full: bool = False, samples: bool = False,
    draws: int | None = None,
) -> dict:  # fmt: skip
    """A block of metrics of a checkpoint: quick, or full. An autoencoder has no ELBO, no bound.

    The bound of a full one has `draws`, or as many as the block that is there, or 5,000. Where the
    images' factors are known, the scores of the codes of 15,000 training images come with it; with
    `samples`, how the model's draws stand to the images.
    """
    if samples:
        check(images)
    recipe = recipes.read(folder) if (folder / files.RECIPE).exists() else {}
    if recipe.get("objective") == "autoencoder":
        if full:
            raise CheckpointError(
                f"{folder} is an autoencoder, which has no bound: leave --full out"
            )
        block = evaluation.evaluate(model, images, objective=objectives.autoencoder)
    elif full:
        there = files.read_metrics(folder).get("test_full", {}).get("bound", {})
        n = draws or there.get("n_importance", 5000)
        block = evaluation.evaluate_fully(model, images, folder, n)
    else:
        block = evaluation.evaluate(model, images, **evaluation.quick(model))
    if images.factors:
        some = images_for(model, folder, "train", name=images.name).subset(15_000)
        found = metrics.scores(posteriors(model, some).loc, some.factors)
        block["scores"] = {name: round(score, 4) for name, score in found.items()}
    if samples:
        block["samples"] = of_model(model, images)
    return block


def followed(model, images: Images | None, least: float = 0.1) -> dict[int, dict[str, str]]:
    """Which factor a latent's mean says most of, {"follows": its name} by the latent's number.

    Of a factor's entropy it must say a share of `least`; a latent that says less has no entry.
    """
    if images is None or not images.factors:
        return {}
    means, names = posteriors(model, images).loc, list(images.factors)
    shares = metrics.mutual_information(means, images.factors, len(images))  # (D, F) nats
    shares = shares / torch.tensor([metrics.entropy(v.numpy()) for v in images.factors.values()])
    most, best = shares.max(1)
    return {d: {"follows": names[best[d]]} for d in range(len(most)) if most[d] >= least}


def drawn(model, images: Images, seed: int = 0) -> Tensor:
    """One draw from q(z | x) for each image. Shapes: N images -> (N, D)."""
    return drawn_from(posteriors(model, images, seed), seed)


def drawn_from(q_z: Normal, seed: int) -> Tensor:
    """One draw from each q(z | x). Shapes: (N, D) -> (N, D)."""
    noise = torch.randn(q_z.loc.shape, generator=torch.Generator().manual_seed(seed))
    return q_z.loc + q_z.scale * noise


def keep_frame(model, images: Images, folder: Path, history) -> None:
    """Add a frame to the run's film: of a map, where there can be one, else of samples.

    Where the model puts the first 1,000 images by now; or what it makes of the same 24 draws from
    the prior, where images are small.
    """
    path, film = folder / files.FILM, {"steps": torch.tensor([history.rows[-1]["step"]])}
    if model.latent_dim == 2 and images.labels is not None:
        film["z"] = posteriors(model, images.subset(1000)).loc.half().unsqueeze(0)  # (1, N, 2)
    elif math.prod(model.image_shape) <= SMALL:
        z = model.prior.sample(24, torch.Generator().manual_seed(0))
        with torch.inference_mode():
            mean = model.decode(z.to(next(model.parameters()).device)).mean.cpu()
        pictures = (255 * mean.clamp(0, 1)).round().to(torch.uint8)
        film["pictures"] = pictures.unsqueeze(0)  # (1, 24, C, H, W)
    else:
        return
    if path.exists():
        kept = files.read_tensors(path)[0]
        film = {key: torch.cat([kept[key], new]) for key, new in film.items()}
    if len(film["steps"]) > MOST_FRAMES:
        film = {key: frames[::2].contiguous() for key, frames in film.items()}
    files.write_tensors(path, film)


def first_images(model, folder: Path, split: str, **of: str) -> Images:
    """As many of a split's images as what is kept is made of; `of` may give another `name`."""
    return images_for(model, folder, split, **of).subset(10_000)


def aggregate(model, folder: Path, name: str | None = None) -> MixtureSameFamily:
    """A density fitted to draws from q(z | x) over the training images.

    A Gaussian mixture, of the first 10,000 images at most; the number of its components is the
    one best on the validation images, of those with 20 training images for each component. The
    images are the recipe's, and the density is kept beside the weights; or those of the data set
    `name`, and nothing is kept.
    """
    of = {"name": name} if name else {}
    train, val = (partial(first_images, model, folder, split, **of) for split in ("train", "val"))
    if not name and (found := checkpoints.kept_tensors(folder, files.LATENTS, train)):
        return latents.mixture(**found[0])
    train, val = train(), val()
    if len(train) < 2 or not len(val):
        raise ValueError(
            f"{train.name} has {len(train)} training and {len(val)} validation images, too few to "
            "fit a density to their latents; draw from the prior"
        )
    z, z_val = (drawn(model, images) for images in (train, val))
    fit, scores = best_mixture(z, z_val)
    if name:
        return fit
    parts = fit.component_distribution
    tensors = {"weights": fit.mixture_distribution.probs}
    tensors |= {"means": parts.loc, "scale_tril": parts.scale_tril}
    metadata = {f"val log-density, {n} components": f"{s:.3f} nats" for n, s in scores.items()}
    checkpoints.keep_tensors(folder, files.LATENTS, tensors, metadata | {"images": train.sha256})
    return fit


def best_mixture(z: Tensor, z_val: Tensor) -> tuple[MixtureSameFamily, dict[int, float]]:
    """The Gaussian mixture of some latents that is best on others; and of each number of
    components tried, which has 20 latents for each, the mean log-density of those others in nats.

    Shapes: (N, D), (M, D) -> over (D,).
    """
    numbers = [n for n in (1, 2, 5, 10, 20) if n == 1 or 20 * n <= len(z)]
    fits = {n: latents.fit_mixture(z, n) for n in numbers}
    scores = {n: fit.log_prob(z_val).mean().item() for n, fit in fits.items()}
    return fits[max(scores, key=scores.get)], scores


def attributes(model, folder: Path) -> dict[str, dict[str, Tensor]]:
    """Of each attribute its two directions, and how well they tell held-out images; kept.

    "directions" (2, D), `latents.attribute_directions` of the training images, and "auc" (2,),
    the areas under the ROC curve of the test images' means of q(z | x) along either. Empty
    where the data has no attributes.
    """
    train, test = (partial(first_images, model, folder, split) for split in ("train", "test"))
    found = checkpoints.kept_tensors(folder, files.ATTRIBUTES, train)
    if not found:
        train, test = train(), test()
        z, z_test = (posteriors(model, images).loc for images in (train, test))
        tensors = {}
        for name, has in (train.attributes or {}).items():
            if any(min(h.sum(), (~h).sum()) < 5 for h in (has, test.attributes[name])):
                continue  # too few of them, or of the others, to say
            ways = torch.stack(latents.attribute_directions(z, has))  # (2, D)
            on_test = [latents.auc(z_test @ way, test.attributes[name]) for way in ways]
            tensors |= {f"{name}.directions": ways, f"{name}.auc": torch.tensor(on_test)}
        checkpoints.keep_tensors(folder, files.ATTRIBUTES, tensors, {"images": train.sha256})
        found = tensors, {}
    table: dict[str, dict[str, Tensor]] = {}
    for key in sorted(found[0]):
        name, what = key.rsplit(".", 1)
        table.setdefault(name, {})[what] = found[0][key]
    return table


def shown_directions(table: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    """Of `attributes`, one direction (D,) for each that pictures and sliders show.

    Those are the ones of SHOWN that there are; else the first six.
    """
    names = [name for name in SHOWN if name in table] or list(table)[:6]
    return {name: table[name]["directions"][0] for name in names}
