"""What was typed: parsers made of the commands' and the recipe's docstrings, one line a key.

Nothing here imports torch, so that help and mistakes are answered at once.
"""

import dataclasses
import inspect
import itertools
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from jsonargparse import ArgumentError, ArgumentParser

from vaelib import budget, checkpoints, choices, files, recipes
from vaelib.recipes import DataConfig, ModelConfig, TrainConfig

SHORT = {"config": "-c", "run_dir": "-e", "output": "-o"}
# what people type who come from elsewhere, and what it is here
ELSEWHERE = {
    "learning_rate": "--lr",
    "z_dim": "--latent_dim",
    "latent_size": "--latent_dim",
    "hidden_dims": "--widths",
    "kl_weight": "--beta",
    "output_dir": "--run_dir",
    "dataset": "--data",
    "loss": "--likelihood: bernoulli for cross-entropy, gaussian with --sigma for squared errors",
}
Mode = Literal[
    "sample", "interpolate", "traverse", "reconstruct", "visualize_latent", "manifold",
    "architecture",
]  # fmt: skip
# of `sample`, the options that have an effect in each mode, beside name, mode and where to write
EFFECTIVE = {
    "sample": {"seed", "latents", "n_samples", "n_columns", "separate", "batch_size", "data"},
    "interpolate": {"seed", "n_samples", "n_interpolate", "start", "path", "latents", "data"},
    "traverse": {
        "seed", "n_samples", "n_traverse", "traverse_range", "traverse_dim", "start", "latents",
        "data",
    },
    "reconstruct": {"seed", "n_samples", "n_columns", "data"},
    "visualize_latent": {"data"},
    "manifold": {"n_samples", "spacing"},
    "architecture": set(),
}  # fmt: skip
LIKELIHOODS_ELSEWHERE = {"mse": "gaussian, with sigma fixed (--sigma)", "bce": "bernoulli"}
EPOCHS = ("epochs", "num_epochs", "n_epochs", "max_epochs")
# of a type what to give
KINDS = {
    "int": "a whole number", "float": "a number", "bool": "true or false", "NoneType": "null",
    "list": "a list, as '[32,64]'", "tuple": "a list, as '[32,64]'",
    "dict": "keys and values, as '{sigma: 0.1}'",
}  # fmt: skip
NONE = inspect.Parameter.empty


class UsageError(files.UserError):
    """The command can't be carried out as typed; the message says what to type instead."""


class Key(NamedTuple):
    """Something that can be typed: its group, name, type, default (NONE: a must) and what it is."""

    group: str
    name: str
    type: type
    default: object
    text: str


def explained(doc: str) -> dict[str, tuple[str, str]]:
    """Of each "name : text" of a docstring the group and the text.

    A group begins with a line "Word: ..." of its own.
    """
    group, name, found = "options", None, {}
    for line in inspect.cleandoc(doc).splitlines():
        if match := re.match(r"([A-Z]\w+): ", line):
            group, name = match[1].lower(), None
        elif match := re.match(r"(\w+) : (.*)", line):
            name = match[1]
            found[name] = (group, match[2])
        elif name and line.startswith("    "):
            found[name] = (group, f"{found[name][1]} {line.strip()}")
        else:
            name = None
    return {name: (group, text.rstrip(".")) for name, (group, text) in found.items()}


def recipe_keys() -> list[Key]:
    """Every key of a recipe, by group."""
    found = []
    for kind in (DataConfig, ModelConfig, TrainConfig):
        texts, defaults = explained(kind.__doc__), vars(kind())
        for field in dataclasses.fields(kind):
            group, text = texts[field.name]
            found.append(Key(group, field.name, field.type, defaults[field.name], text))
    return found


def function_keys(function: Callable) -> list[Key]:
    """The parameters of a command, explained by its docstring."""
    texts = explained(function.__doc__)
    return [
        Key(texts[name][0], name, p.annotation, p.default, texts[name][1])
        for name, p in inspect.signature(function).parameters.items()
        if p.kind is not inspect.Parameter.VAR_KEYWORD
    ]


def parser_of(command: str, what: str, keys: Sequence[Key], epilog: str = "") -> ArgumentParser:
    """The parser of a command; it raises ArgumentError and takes no abbreviations."""
    parser = ArgumentParser(
        prog=f"vaelib {command}", description=what, epilog=epilog, exit_on_error=False,
        allow_abbrev=False,
    )  # fmt: skip
    groups = {"options": parser}
    for group, name, type_, default, text in keys:
        if group not in groups:
            groups[group] = parser.add_argument_group(group)
        flags = [SHORT[name], f"--{name}"] if name in SHORT else [f"--{name}"]
        if default is NONE:
            many = {"nargs": "*"} if type_ == list[str] else {"type": type_}
            groups[group].add_argument(name, help=text, **many)
        elif (type_ is bool and command != "train") or name == "resume":
            groups[group].add_argument(*flags, action="store_true", help=text)
        else:
            groups[group].add_argument(
                *flags, type=type_, default=default, help=text, metavar=name.upper()
            )
    return parser


def typed(command: str, parser: ArgumentParser, keys: Sequence[Key], words: list[str]) -> dict:
    """The keys that were typed and their values; UsageError in one line for what is wrong."""
    names = {key.name for key in keys}
    for word in words:
        name = word.removeprefix("--").split("=")[0].split(".")[0]
        if word.startswith("--") and name and name not in names:
            if name in EPOCHS and command == "train":
                raise UsageError(f"{word}: here it is {steps_of(words, word)}")
            if name in ELSEWHERE and command == "train":
                raise UsageError(f"{word}: here it is {ELSEWHERE[name]}")
            near = choices.nearest(name, names)
            raise UsageError(f"vaelib {command} has no {word}{near}; see vaelib {command} --help")
    try:
        found = parser.parse_args(words, defaults=False).as_dict()
    except ArgumentError as error:
        raise UsageError(readable(str(error))) from error
    if meant := LIKELIHOODS_ELSEWHERE.get(str(found.get("likelihood")).lower()):
        raise UsageError(f"--likelihood {found['likelihood']}: here it is {meant}")
    return found


def steps_of(words: Sequence[str], flag: str) -> str:
    """The steps that so many epochs are, where the number of training images is known."""
    from vaelib.data import source

    after = dict(itertools.pairwise(words)) | dict(w.split("=", 1) for w in words if "=" in w)
    recipe = {"data": DataConfig.data, "batch_size": TrainConfig.batch_size}
    try:
        if name := after.get("-c", after.get("--config")):
            recipe |= recipes.read(recipe_path(name))
        data = after.get("--data", recipe["data"])
        batch = int(after.get("--batch_size", recipe["batch_size"]))
        epochs = float(after[flag.split("=")[0]])
        n_train = source(data).n_train
        steps = math.ceil(epochs * n_train / batch)
    except (files.UserError, ArithmeticError, ValueError, KeyError, TypeError):
        return "--steps, which are epochs * images / batch_size"
    return f"--steps {steps} ({epochs:g} epochs of {n_train:,} images in batches of {batch})"


def recipe_path(config: str) -> Path:
    """The file of a recipe: a YAML file, or that of a checkpoint by name."""
    is_path = Path(config).is_file() or Path(config).suffix in (".yaml", ".yml")
    return Path(config) if is_path else checkpoints.find(config) / files.RECIPE


def readable(message: str) -> str:
    """A parser's complaint in plain words."""
    message = " ".join(message.split())
    if bare := re.fullmatch(r"argument (?:-\w/)?(--\w+): expected one argument", message):
        return f"{bare[1]} needs a value after it"
    if unknown := re.search(r"Option '(\w+)' is not accepted", message):
        near = choices.nearest(unknown[1], [key.name for key in recipe_keys()])
        return f"a recipe has no key {unknown[1]!r}{near}"
    wrong = re.match(r'Parser key "(.+?)": .*(?:Got|Given) value: (.*)', message)
    if not wrong:
        return message
    if listed := re.search(r"Literal\[(.*?)\]", message):
        among = listed[1].replace("'", "")
        near = choices.nearest(wrong[2], among.split(", "))
        return f"--{wrong[1]} {wrong[2]}{near}; choose one of {among}"
    kinds = re.findall(r"Expected an? (?:<class ')?(\w+)", message)
    wanted = " or ".join(dict.fromkeys(KINDS.get(kind, kind) for kind in kinds))
    return f"--{wrong[1]} {wrong[2]}: give {wanted or 'something else'}"


def train_recipe(
    parser: ArgumentParser, typed: dict, config: str | None, run_dir: str | None, resume: bool
) -> dict:
    """The recipe to train: that in `config`, what suits `minutes`, and above all what was typed."""
    defaults = {key.name: key.default for key in recipe_keys()}
    if resume:
        return resumed(defaults, typed, run_dir)
    if typed.get("minutes") and "steps" in typed:
        raise UsageError("--minutes takes the place of --steps: give one of them")
    recipe = {}
    if config is not None:
        path = recipe_path(config)
        try:
            recipe = parser.parse_object(recipes.read(path), defaults=False).as_dict()
        except ArgumentError as error:
            raise UsageError(f"{path}: {readable(str(error))}") from error
    minutes = typed.get("minutes")
    if minutes is not None and not 0 < minutes < math.inf:
        raise UsageError(f"--minutes {minutes:g}: give a number above 0")
    if minutes:  # the machine decides what suits the time, where nothing is typed
        open_ = (*budget.SCHEDULE, "compile", *(budget.NETWORK if config is None else ()))
        recipe |= dict.fromkeys(open_) | {"clock_steps": None, "plans": []}
    elif "steps" in typed:  # other steps than a clocked run came to
        recipe |= {"minutes": None, "clock_steps": None, "plans": []}
    return plain_lists(defaults | recipe | merged(recipe, typed))


def resumed(defaults: dict, typed: dict, run_dir: str | None) -> dict:
    """The recipe of the run in a folder, of which only steps may be changed."""
    if run_dir is None:
        raise UsageError("--resume takes -e RUN_DIR, the folder of the run to go on with")
    recipe = plain_lists(defaults) | recipes.read(Path(run_dir) / files.RECIPE)
    if "data" in typed:
        from vaelib import data

        typed["data"] = data.absolute(typed["data"])
    typed = plain_lists(merged(recipe, typed))
    changed = ", ".join(k for k, v in typed.items() if k != "steps" and v != recipe.get(k))
    if changed:
        raise UsageError(f"{run_dir} was started with another {changed}; only steps may change")
    return recipe | typed


def merged(recipe: dict, typed: dict) -> dict:
    """What was typed; of a group of arguments the rest of the recipe's stays."""
    return {
        key: (recipe.get(key) or {}) | value if isinstance(value, dict) else value
        for key, value in typed.items()
    }


def plain_lists(recipe: dict) -> dict:
    """Tuples as lists, as YAML has them."""
    return {key: list(v) if isinstance(v, tuple) else v for key, v in recipe.items()}
