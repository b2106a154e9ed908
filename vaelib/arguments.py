"""A recipe on the command line: what was typed, over what a file says, over the defaults."""

from pathlib import Path

from jsonargparse import ArgumentError, ArgumentParser

from vaelib import checkpoints, files, recipes
from vaelib.models import VAE
from vaelib.recipes import DataConfig, TrainConfig


class UsageError(ValueError):
    """The command can't be carried out as typed; the message says what to type instead."""


def train_parser() -> ArgumentParser:
    """A recipe's keys: the data's, the model's arguments, the fields of TrainConfig."""
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_argument("-c", "--config", type=str | None, help="checkpoint or YAML file")
    parser.add_argument("-e", "--run_dir", type=str | None, help="default: runs/<time>")
    longer = "go on with the run in RUN_DIR, with --steps for longer"
    parser.add_argument("--resume", action="store_true", help=longer)
    parser.add_class_arguments(DataConfig)
    parser.add_class_arguments(VAE, skip={"image_shape"})
    parser.add_class_arguments(TrainConfig)
    return parser


def train_arguments(arguments: list[str]) -> dict:
    """What `train` gets: the recipe in -c, what suits --minutes, and above all what was typed."""
    parser = train_parser()
    typed = parser.parse_args(arguments, defaults=False).as_dict()
    own = {"run_dir": typed.pop("run_dir", None), "resume": typed.pop("resume", False)}
    config = typed.pop("config", None)
    if own["resume"]:
        return own | resumed(parser, own["run_dir"], typed)
    recipe = {}
    if config is not None:
        is_file = Path(config).is_file()
        path = Path(config) if is_file else checkpoints.find(config) / files.RECIPE
        try:
            recipe = parser.parse_object(recipes.read(path), defaults=False).as_dict()
        except ArgumentError as error:
            raise UsageError(f"{path}: {error}") from error
    if typed.get("minutes"):  # what suits the time, where nothing else was typed
        recipe |= recipes.best_for(typed["minutes"]) | {"clock_steps": None, "plans": []}
    elif "steps" in typed:  # other steps than a clocked run came to
        recipe |= {"minutes": None, "clock_steps": None, "plans": []}
    defaults = {k: v for k, v in parser.get_defaults().as_dict().items() if k != "config"}
    return plain_lists(defaults | recipe | merged(recipe, typed)) | own


def resumed(parser: ArgumentParser, run_dir: str | None, typed: dict) -> dict:
    """The recipe of the run in a folder, of which only steps may be changed."""
    if run_dir is None:
        raise UsageError("--resume takes -e RUN_DIR, the folder of the run to go on with")
    started = recipes.read(Path(run_dir) / files.RECIPE)
    recipe = plain_lists(parser.get_defaults().as_dict()) | started
    typed = plain_lists(merged(recipe, typed))
    changed = ", ".join(k for k, v in typed.items() if k != "steps" and v != recipe.get(k))
    if changed:
        raise UsageError(f"{run_dir} was started with another {changed}; only steps may change")
    recipe |= typed
    return {k: v for k, v in recipe.items() if k not in ("config", "run_dir", "resume")}


def merged(recipe: dict, typed: dict) -> dict:
    """What was typed; of a group of arguments the rest of the recipe's stays."""
    return {
        key: (recipe.get(key) or {}) | value if isinstance(value, dict) else value
        for key, value in typed.items()
    }


def plain_lists(recipe: dict) -> dict:
    """Tuples as lists, as YAML has them."""
    return {key: list(v) if isinstance(v, tuple) else v for key, v in recipe.items()}
