"""One row as found in a file → an Item, or the reason why it is none.

Rows are Libra Bench records, or plain ones: a text alone, a prompt, a pair under their usual names, or `messages`. A
`response` without a question is a text, as it is in the benchmark; with `"kind": "response"` it is a model's.
"""

from __future__ import annotations

from typing import Final

from pydantic import ValidationError
from pydantic_core import from_json

from schemas.items import Dialogue, Item, Kind, LibraRecord, dialogue_of

_ALIASES: Final = {
    "response": ("text", "content", "answer"),
    "question": ("prompt", "query", "instruction"),
    "label": ("truth",),
    "category_name": ("category",),
    "sub_category_name": ("subcategory",),
}
"""Field of the Libra record → other names it goes by, ours first among them (an Item dumped as JSON reads back)."""

TEXT_COLUMNS: Final = ("response", *_ALIASES["response"], "question", *_ALIASES["question"], "messages")
"""A row needs one of these."""

COLUMNS: Final = frozenset(
    {"id", "source", "messages", "kind", *_ALIASES, *(alias for names in _ALIASES.values() for alias in names)}
)
"""Every name that is looked at; all others are the user's own."""

_JSON_NAMES: Final = {
    **{type(None): "null", bool: "true or false", str: "a string", list: "an array"},
    **dict.fromkeys((int, float), "a number"),
}
_MAX_PROBLEM_CHARS: Final = 300


class RowError(ValueError):
    """A row that is no item; the message says why, in one short line."""

    def __init__(self, problem: str) -> None:
        if len(problem) > _MAX_PROBLEM_CHARS:
            problem = problem[:_MAX_PROBLEM_CHARS] + "…"
        # A problem may quote the row, and what is quoted may be unprintable or no valid text at all.
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in problem))


def decode_line(line: bytes) -> object:
    """The JSON value on a line, or RowError."""
    try:
        return from_json(line)
    except ValueError as error:
        problem = "broken JSON: " + str(error).replace(" at line 1 column", " at column")
    try:
        line.decode()
    except UnicodeDecodeError as wrong:
        problem = f"not UTF-8 (byte {line[wrong.start]:#04x} at column {wrong.start + 1}); save the file as UTF-8"
    raise RowError(problem)


def to_item(row: object, fallback_id: str) -> Item:
    """The item a row describes, or RowError; `fallback_id` names it where the row has no id."""
    if not isinstance(row, dict):
        raise RowError(f"a JSON object is expected, not {_JSON_NAMES.get(type(row), type(row).__name__)}")
    record, dialogue = _named(row, fallback_id)
    try:
        item = LibraRecord.model_validate(record).to_item()
        if dialogue:
            return Item.model_validate({**dict(item), **dialogue._asdict()})
    except ValidationError as error:
        raise RowError(_problems(error, row)) from None
    if item.kind is Kind.TEXT and row.get("kind") == Kind.RESPONSE:
        return item.model_copy(update={"kind": Kind.RESPONSE})
    return item


def _named(row: dict[str, object], fallback_id: str) -> tuple[dict[str, object], Dialogue | None]:
    """The row under a Libra record's names, and its texts where it has them as messages."""
    record = dict(row)
    if record.get("id") is None:
        record["id"] = fallback_id
    for field in _ALIASES:
        if record.get(field) is None and (alias := _alias_in(row, field)):
            record[field] = row[alias]
    if not (_is_empty(record.get("response")) and _is_empty(record.get("question"))):
        return record, None
    dialogue = _conversation(row, needed=record.get("response") is None)
    if dialogue:
        record.update(question=dialogue.question, response=dialogue.response)
    return record, dialogue


def _is_empty(text: object) -> bool:
    return text is None or text == ""


def _conversation(row: dict[str, object], *, needed: bool) -> Dialogue | None:
    """The texts of a row that has them as messages; None, or RowError where they are `needed`, if it has none."""
    if row.get("messages") is not None:
        try:
            return dialogue_of(row["messages"])
        except ValueError as error:
            raise RowError(f"messages: {error}") from None
    if not needed:
        return None
    keys = ", ".join(repr(key[:40]) for key in list(row)[:8]) or "no keys at all"
    more = f" and {len(row) - 8} more" if len(row) > 8 else ""
    raise RowError(f"no text to judge: expected {', '.join(TEXT_COLUMNS)}, found {keys}{more}")


def _problems(error: ValidationError, row: dict[str, object]) -> str:
    """Each wrong field under the name the user gave it, without the value's text."""
    problems: dict[str, str] = {}
    for detail in error.errors(include_url=False, include_input=False, include_context=False):
        field = str(detail["loc"][0]) if detail["loc"] else ""
        known = _alias_in(row, field) if field in _ALIASES and row.get(field) is None else None
        problems.setdefault(known or field, detail["msg"].removeprefix("Value error, "))
    return "; ".join(f"{name}: {problem}" if name else problem for name, problem in problems.items())


def _alias_in(row: dict[str, object], field: str) -> str | None:
    """The one other name under which the row has this field."""
    found = [alias for alias in _ALIASES[field] if row.get(alias) is not None]
    if len(found) > 1:
        raise RowError(f"{' and '.join(found)} could each be the {field}; name one of them {field}")
    return found[0] if found else None
