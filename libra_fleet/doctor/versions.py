"""Versions of Python and of the libraries that decide what the fleet does, against those it was tested with."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Final, NamedTuple

from libra_fleet.doctor.finding import Finding, error, good, warning


class _Range(NamedTuple):
    """From the oldest that pyproject.toml allows up to, and without, the first that nobody has tried."""

    oldest: str
    untried: str
    extra: str = ""


TESTED: Final = {
    "python": _Range("3.11", "3.14"),
    "celery": _Range("5.7", "5.8"),
    "kombu": _Range("5.7", "5.8"),
    "redis": _Range("6", "9"),
    "sqlalchemy": _Range("2.0.36", "2.2"),
    "psycopg": _Range("3.2", "4"),
    "pydantic": _Range("2.11", "3"),
    "torch": _Range("2.6", "3", "worker"),
    "transformers": _Range("5.2", "6", "worker"),
    "tokenizers": _Range("0.22", "0.24", "worker"),
    "safetensors": _Range("0.5", "0.9", "worker"),
    "accelerate": _Range("1.10", "2", "worker"),
}


def installed_version(name: str) -> str | None:
    """The version of a package, or of Python itself; None where it is not installed."""
    if name == "python":
        return platform.python_version()
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def check_versions(installed: Callable[[str], str | None] = installed_version) -> Iterator[Finding]:
    """A finding for every version outside its range, and one for all that lie within."""
    fine = []
    for name, known in TESTED.items():
        found = installed(name)
        if found is None:
            if not known.extra:
                yield error("versions", f"{name} is not installed", why="nothing runs without it", do=_install(name))
            continue
        if _numbers(found) < _numbers(known.oldest):
            yield error(
                "versions",
                f"{name} {found} is older than {known.oldest}",
                why="something that is used here is not in it",
                do=_install(f"{name}>={known.oldest}"),
            )
        elif _numbers(found) >= _numbers(known.untried):
            yield warning(
                "versions",
                f"{name} {found} is newer than what was tested (below {known.untried})",
                why="it may behave otherwise where it matters",
                do=_install(f"{name}>={known.oldest},<{known.untried}"),
            )
        else:
            fine.append(f"{name} {found}")
    missing = [name for name, known in TESTED.items() if known.extra and installed(name) is None]
    if missing:
        fine.append(f"without {', '.join(missing)}: this machine can produce and collect, not judge")
    yield good("versions", ", ".join(fine))


def _install(what: str) -> str:
    return f"pip install '{what}'" if not what.startswith("python") else "install a newer Python and make a new venv"


def _numbers(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: 2.13.0+cu130 is (2, 13, 0)."""
    numbers = []
    for part in text.split("+", maxsplit=1)[0].split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)
