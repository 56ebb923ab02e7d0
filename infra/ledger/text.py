"""Text as Postgres can hold it: without NUL and without lone surrogates, which both become U+FFFD.

A model writes them, a class of a checkpoint may be named with them, a file's name may hold them. Every string on its
way to the server passes here, whatever its column, so that nobody who writes a statement has to think of it.
"""

from __future__ import annotations

import json
from typing import Any

import psycopg
from psycopg.adapt import Buffer
from psycopg.types.string import StrBinaryDumper, StrBinaryDumperVarchar, StrDumper, StrDumperUnknown, StrDumperVarchar


def clean(text: str) -> str:
    """The text with each NUL and each lone surrogate replaced; two halves of one character are joined."""
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return whole.replace("\x00", "\N{REPLACEMENT CHARACTER}")


def clean_json(value: object) -> str:
    """The JSON of a value whose strings are clean; Chinese stays as it is."""
    text = json.dumps(value, ensure_ascii=False)
    if "\\u0000" in text:  # a NUL, or a backslash before "u0000"
        text = json.dumps(_cleaned(value), ensure_ascii=False)
    return text


def _cleaned(value: Any) -> Any:  # noqa: ANN401 - whatever JSON can hold
    match value:
        case str():
            return clean(value)
        case dict():
            return {_cleaned(key): _cleaned(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_cleaned(inner) for inner in value]
    return value


class _Clean:
    """Mixed into a dumper of strings. What is clean already, as nearly all is, is encoded at once."""

    def dump(self, obj: str) -> Buffer | None:
        try:
            if "\x00" not in obj:
                return super().dump(obj)  # type: ignore[misc, no-any-return]
        except UnicodeEncodeError:
            pass
        return super().dump(clean(obj))  # type: ignore[misc, no-any-return]


_STOCK = (StrBinaryDumperVarchar, StrBinaryDumper, StrDumperVarchar, StrDumper, StrDumperUnknown)
_DUMPERS = tuple(type(stock.__name__, (_Clean, stock), {}) for stock in _STOCK)


def register_clean_text(connection: psycopg.Connection) -> None:
    """Clean every string that this connection sends."""
    for dumper in _DUMPERS:
        connection.adapters.register_dumper(str, dumper)
