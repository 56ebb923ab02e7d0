"""Ages and moments on the command line: 30d, 12h, 90m, 2026-11-24, 2026-11-24T18:00."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

import click

_UNITS: Final = {"d": "days", "h": "hours", "m": "minutes"}


def age(_: click.Context, __: click.Parameter, value: str) -> timedelta:
    """A click callback: how long ago."""
    found = _age(value)
    if found is None:
        raise click.BadParameter(f"{value!r}: expected a number of days, hours or minutes, such as 30d, 12h, 90m")
    return found


def moment(_: click.Context, __: click.Parameter, value: str | None) -> datetime | None:
    """A click callback: a moment, as an age or as a date (and time; UTC where no zone is named)."""
    if value is None:
        return None
    ago = _age(value)
    try:
        if ago is not None:
            return datetime.now(UTC) - ago
        at = datetime.fromisoformat(value)
    except (ValueError, OverflowError) as error:
        raise click.BadParameter(
            f"{value!r}: expected an age such as 30d, 12h, 90m, or a moment such as 2026-11-24 or 2026-11-24T18:00"
        ) from error
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _age(value: str) -> timedelta | None:
    match = re.fullmatch(r"(\d{1,6})([dhm])", value)
    return timedelta(**{_UNITS[match[2]]: int(match[1])}) if match else None
