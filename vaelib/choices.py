"""Names chosen from a list, and arguments checked against the signature of what they are for.

An objective, likelihood or prior declares its own parameters as keyword-only arguments with a
default; a recipe gives them as `objective_args`, `likelihood_args`, `prior_args`.
"""

import difflib
import inspect
from collections.abc import Callable, Iterable
from typing import Literal, get_args, get_origin


def nearest(word: str, words: Iterable[str]) -> str:
    """ ", did you mean ...?" where one of the words is near, else nothing."""
    found = difflib.get_close_matches(str(word), list(words), 1)
    return f", did you mean {found[0]}?" if found else ""


def choose(kind: str, name: str, table: dict[str, Callable]) -> Callable:
    """What `table` has under `name`; ValueError with the choices where it has nothing."""
    if name not in table:
        choices = ", ".join(table)
        raise ValueError(f"{kind} {name!r}{nearest(name, table)}; choose one of {choices}")
    return table[name]


def own_parameters(function: Callable, given: Iterable[str] = ()) -> dict[str, inspect.Parameter]:
    """The parameters that a recipe may set: those with a default, but for what is `given`.

    Of a function only the keyword-only ones, of a class all of its constructor's.
    """
    kinds = (inspect.Parameter.KEYWORD_ONLY,)
    if inspect.isclass(function):
        kinds += (inspect.Parameter.POSITIONAL_OR_KEYWORD,)
    return {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind in kinds
        and parameter.default is not inspect.Parameter.empty
        and name not in given
    }


def checked(kind: str, function: Callable, arguments: dict, given: Iterable[str] = ()) -> dict:
    """`arguments` if they fit the parameters of `function`; ValueError in one line if not.

    A value must be of its default's kind; an int may stand for a float.
    """
    own = own_parameters(function, given)
    for name, value in arguments.items():
        if name not in own:
            there = f"it has {', '.join(own)}" if own else "it has none"
            raise ValueError(f"{kind} has no parameter {name!r}{nearest(name, own)}; {there}")
        default, among = own[name].default, get_args(own[name].annotation)
        if get_origin(own[name].annotation) is Literal and value not in among:
            raise ValueError(f"{kind}: {name} is {value!r}; choose one of {', '.join(among)}")
        if not _alike(value, default):
            raise ValueError(f"{kind}: {name} is {value!r}; give one like its default, {default!r}")
    return arguments


def _alike(value, default) -> bool:
    if default is None:
        return True
    if isinstance(value, bool) or isinstance(default, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    kinds = {float: (float, int), tuple: (tuple, list), list: (tuple, list)}
    return isinstance(value, kinds.get(type(default), type(default)))
