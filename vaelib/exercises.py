"""The checks under the notebooks' exercises."""

from collections.abc import Callable


def check(number: int, answer, is_right: Callable) -> None:
    """Say whether an exercise's answer is right; None means that nobody has tried it yet.

    `is_right(answer)` returns a bool. Whatever it raises is shown, not hidden: a wrong shape
    says more than "wrong".
    """
    if answer is None:
        print(f"Exercise {number}: not attempted.")
        return
    print(f"Exercise {number}: {'correct.' if is_right(answer) else 'not yet.'}")
