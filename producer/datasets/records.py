"""One row as found in a file → an Item, or the reason why it is none.

Rows are Libra Bench records, or plain ones: a text alone, or a question and an answer under their usual names.
"""

from __future__ import annotations

from typing import Final

from pydantic import ValidationError
from pydantic_core import from_json

from schemas.items import Item, LibraRecord

_ALIASES: Final = {
    "response": ("text", "content", "answer"),
    "question": ("prompt", "query", "instruction"),
    "label": ("truth",),
    "category_name": ("category",),
    "sub_category_name": ("subcategory",),
}
"""Field of the Libra record → other names it goes by, ours first among them (an Item dumped as JSON reads back)."""

TEXT_COLUMNS: Final = frozenset({"response", *_ALIASES["response"]})
"""A row needs one of these."""

COLUMNS: Final = frozenset({"id", "source", *_ALIASES, *(alias for names in _ALIASES.values() for alias in names)})
"""Every name that is looked at; all others are the user's own."""

_MAX_PROBLEM_CHARS: Final = 300


class RowError(ValueError):
    """A row that is no item; the message says why, in one short line."""

    def __init__(self, problem: str) -> None:
        if len(problem) > _MAX_PROBLEM_CHARS:
            problem = problem[:_MAX_PROBLEM_CHARS] + "…"
        # A problem may quote the row, and what is quoted may be unprintable or no valid text at all.
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in problem))


def decode_line(line: bytes) -> object:
    """The JSON value on a line.

    Raises:
        RowError: the line is not UTF-8 or not JSON.
    """
    try:
        return from_json(line)
    except ValueError as error:
        raise RowError(_why_undecodable(line, error)) from None


def to_item(row: object, fallback_id: str) -> Item:
    """The item a row describes; `fallback_id` names it where the row has no id.

    Raises:
        RowError: the row is no object, has no text, or has a value that no item can have.
    """
    if not isinstance(row, dict):
        raise RowError(f"a JSON object is expected, not {_kind(row)}")
    try:
        return LibraRecord.model_validate(_as_record(row, fallback_id)).to_item()
    except ValidationError as error:
        raise RowError(_why_invalid(row, error)) from None


def _as_record(row: dict[str, object], fallback_id: str) -> dict[str, object]:
    """The row under the Libra record's names."""
    record = dict(row)
    if record.get("id") is None:
        record["id"] = fallback_id
    for field in _ALIASES:
        if record.get(field) is None and (alias := _alias_in(row, field)):
            record[field] = row[alias]
    if record.get("response") is None:
        raise RowError(f"no text to judge: expected response, text, content or answer, found {_keys(row)}")
    return record


def _alias_in(row: dict[str, object], field: str) -> str | None:
    """The one other name under which the row has this field."""
    found = [alias for alias in _ALIASES[field] if row.get(alias) is not None]
    if len(found) > 1:
        raise RowError(f"{' and '.join(found)} could each be the {field}; name one of them {field}")
    return found[0] if found else None


def _keys(row: dict[str, object]) -> str:
    shown = [repr(key[:40]) for key in list(row)[:8]]
    more = f" and {len(row) - 8} more" if len(row) > 8 else ""
    return ", ".join(shown) + more if shown else "no keys at all"


def _kind(value: object) -> str:
    """What JSON calls a value that is no object."""
    if value is None:
        return "null"
    names = {bool: "true or false", int: "a number", float: "a number", str: "a string", list: "an array"}
    return names.get(type(value), type(value).__name__)


def _why_undecodable(line: bytes, error: ValueError) -> str:
    try:
        line.decode()
    except UnicodeDecodeError as wrong:
        return f"not UTF-8 (byte {line[wrong.start]:#04x} at column {wrong.start + 1}); save the file as UTF-8"
    return "broken JSON: " + str(error).replace(" at line 1 column", " at column")


def _why_invalid(row: dict[str, object], error: ValidationError) -> str:
    """Each wrong field under the name the user gave it, without the value's text."""
    problems: dict[str, str] = {}
    for detail in error.errors(include_url=False, include_input=False, include_context=False):
        field = str(detail["loc"][0]) if detail["loc"] else ""
        alias = _alias_in(row, field) if field in _ALIASES and row.get(field) is None else None
        problems.setdefault(alias or field, detail["msg"].removeprefix("Value error, "))
    return "; ".join(f"{name}: {problem}" if name else problem for name, problem in problems.items())
