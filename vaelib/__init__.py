"""Variational autoencoders to see, touch and check.

The rooms in reading order; each imports only those before it: files, hub, choices, progress,
recipes, blocks, likelihoods, priors, posteriors, models, objectives, data, budget, hardware,
reports, evaluation, symptoms, checkpoints, diagnosis, stream, run, training, hmc, wake_sleep,
mcem, exact, metrics, samples, latents, derived, experiments, figures, film, gallery, widgets,
exercises, export, publishing, arguments, commands, __main__.
"""

from importlib import import_module

# the short names, each imported from its room when it is first asked for: `vaelib --help` needs
# none of them, and no torch
_ROOMS = {
    "VAE": "models",
    "CheckpointError": "files",
    "DataError": "data",
    "TrainConfig": "recipes",
    "TrainingError": "diagnosis",
    "diagnose": "symptoms",
    "evaluate": "evaluation",
    "fit": "training",
    "load": "data",
    "load_checkpoint": "checkpoints",
}
__all__ = list(_ROOMS)


def __getattr__(name: str):
    if name in _ROOMS:
        return getattr(import_module(f"vaelib.{_ROOMS[name]}"), name)
    if name in __doc__.split("before it:")[1].replace(".", "").replace("\n", " ").split(", "):
        return import_module(f"vaelib.{name}")
    raise AttributeError(f"vaelib has no {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
