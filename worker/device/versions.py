"""The oldest torch and transformers that judge as tested. Older ones change verdicts without a word, so none loads."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Final, NamedTuple

from infra.errors import GuardError


class Floor(NamedTuple):
    """The oldest version that is allowed, and what an older one does."""

    oldest: str
    why: str


FLOORS: Final = {
    "torch": Floor("2.11", "before it, flash attention over ragged rows cannot be told a scale and a window"),
    "transformers": Floor("5.23", "before it, Gemma's attention loses its soft cap, and ShieldGemma answers otherwise"),
}
"""transformers 5.17 was seen to score a Gemma2 otherwise; 5.23 is the first that was run and found right. torch 2.9 has
no such attention, 2.10's takes neither scale nor window."""


def refuse_older(installed: Callable[[str], str] = version) -> None:
    """See that nothing older than `FLOORS` is installed.

    Raises:
        GuardError: something is, or is not installed at all.
    """
    for name, floor in FLOORS.items():
        try:
            found = installed(name)
        except PackageNotFoundError as error:
            raise GuardError(f"{name} is not installed: pip install 'libra-fleet[worker]'") from error
        if numbers_of(found) < numbers_of(floor.oldest):
            raise GuardError(
                f"{name} {found} is older than {floor.oldest}: {floor.why}; pip install '{name}>={floor.oldest}'"
            )


def numbers_of(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: 2.13.0+cu130 is (2, 13, 0)."""
    numbers = []
    for part in text.split("+", maxsplit=1)[0].split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)
