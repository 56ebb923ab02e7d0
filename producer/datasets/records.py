"""One row as found in a file → an Item, or the reason why it is none.

Rows are Libra Bench records, or plain ones: a text alone, a prompt, a pair under their usual names, or `messages`. A
`response` without a question is a text, as it is in the benchmark; with `"kind": "response"` it is a model's.
Column names are compared without case, and blanks or hyphens in them count as underscores. What an item does not need
(source, category and columns of the user's own) never makes a row a bad one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Final

from pydantic import ValidationError

from producer.datasets.labels import LABEL_COLUMNS, label_columns, truth_in
from producer.datasets.rows import RowError, normal_name
from schemas.items import Dialogue, Item, Kind, LibraRecord, dialogue_of, storable
from schemas.reading import AS_IT_IS, Ids, Reading

NAMES: Final[dict[str, tuple[tuple[str, ...], ...]]] = {
    "response": (
        ("response",),
        ("text", "content", "answer"),
        (
            *("output", "completion", "reply", "generation", "model_output", "model_response", "response_text"),
            *("回答", "回复"),
        ),
    ),
    "question": (
        ("question",),
        ("prompt", "query", "instruction"),
        (
            *("user_input", "user_prompt", "prompt_text", "input_prompt", "forbidden_prompt", "adversarial_prompt"),
            *("问题", "提问", "提示", "提示词", "指令"),
        ),
        ("goal",),
        ("behavior",),
    ),
    "messages": (("messages",), ("conversation", "conversations", "dialogue", "dialog", "chat", "turns", "对话")),
    "label": (("label",), ("truth",), ("gold", "gold_label", "safety_label", "标签")),
    "source": (("source",), ("dataset", "来源")),
    "category_name": (("category_name",), ("category",), ("类别", "一级分类")),
    "sub_category_name": (("sub_category_name",), ("subcategory",), ("二级分类",)),
}
"""Field → the names that it goes by, in groups: a name of an earlier group goes before all of a later one."""

TEXTS_ALONE: Final = (
    *("comment", "comment_text", "sentence", "utterance", "tweet", "post", "body"),
    *("文本", "内容", "评论", "正文"),
)
"""Names of a text that nobody answered: read where a row has no other; a comment beside a prompt is no answer to it."""
_TEXTS: Final = ("response", "question", "messages")
_NEEDED: Final = frozenset({*_TEXTS, "label"})
FIELDS: Final = (*_TEXTS, "label", "source", "category_name", "sub_category_name", "id")
TARGETS: Final = {
    **{name: name for name in FIELDS},
    **{"text": "response", "prompt": "question", "category": "category_name", "subcategory": "sub_category_name"},
}
"""What `--field NAME=COLUMN` may name, and the field that it is."""

TEXT_COLUMNS: Final = frozenset(TEXTS_ALONE).union(*(group for field in _TEXTS for group in NAMES[field]))
"""A row needs one of these."""
COLUMNS: Final = frozenset(
    {"id", "kind", *TEXTS_ALONE, *LABEL_COLUMNS}
    | {name for groups in NAMES.values() for group in groups for name in group}
)
"""Every name that is looked at; all others are the user's own."""

_ROLES: Final = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "ai": "assistant"}

_JSON_NAMES: Final = {
    **{type(None): "null", bool: "true or false", str: "a string", list: "an array"},
    **dict.fromkeys((int, float), "a number"),
}


def to_item(row: object, fallback_id: str, reading: Reading = AS_IT_IS) -> Item:
    """The item a row describes, or RowError; `fallback_id` names it where the row has no id, or none that is wanted."""
    if not isinstance(row, dict):
        raise RowError(f"a JSON object is expected, not {_JSON_NAMES.get(type(row), type(row).__name__)}")
    chosen = columns_of(row, reading)
    record: dict[str, object] = {field: value_at(row, chosen[field]) for field in _TEXTS[:2] if field in chosen}
    dialogue = _dialogue(row, chosen, record)
    if dialogue:
        record.update(question=dialogue.question, response=dialogue.response)
    record["id"] = id_of(row, fallback_id, reading)
    for field in ("source", "category_name", "sub_category_name"):
        record[field] = _words(value_at(row, chosen[field])) if field in chosen else None
    record["label"] = truth_in(_said(row, chosen.get("label")), reading)
    try:
        item = LibraRecord.model_validate(record).to_item()
        if dialogue:
            item = Item.model_validate({**dict(item), **dialogue._asdict()})
    except ValidationError as error:
        raise _refusal(error, chosen) from None
    if item.kind is Kind.TEXT and row.get("kind") == Kind.RESPONSE:
        item = item.model_copy(update={"kind": Kind.RESPONSE})
    return item.model_copy(update={"id": item.content_hash.hex()}) if reading.ids is Ids.HASH else item


def columns_of(row: Mapping[str, object], reading: Reading = AS_IT_IS) -> dict[str, str]:
    """Field → the row's column that it is read from; RowError where two could be, or one that was named is not there.

    A column that was given to one field is read for no other.
    """
    known = known_columns(tuple(row))
    chosen = {field: column for field, column in reading.fields.items() if column}
    for field, column in chosen.items():
        several = "," in column and column not in row  # columns of a label, of which a row may lack some
        if field in _NEEDED and not several and value_at(row, column, missing=_ABSENT) is _ABSENT:
            problem = f"no column {column!r} for the {field}; found {_listed(row)}"
            raise RowError(problem, kind=f"no column {column!r}", switch="--field NAME=COLUMN")
    taken = set(chosen.values())
    for field, groups in NAMES.items():
        if field not in reading.fields and (found := _column(row, known, field, groups, taken)):
            chosen[field] = found
    if not chosen.keys() & set(_TEXTS) and (found := _column(row, known, "response", (TEXTS_ALONE,), taken)):
        chosen["response"] = found
    if "label" not in chosen:
        labels = label_columns(row, known, reading, has_response=lambda: _has_response(row, chosen))
        chosen.update({"label": labels} if labels else {})
    return chosen


def _has_response(row: Mapping[str, object], chosen: Mapping[str, str]) -> bool:
    """True if what is judged ends in a response, in a column of its own or as the last message."""
    record = {field: value_at(row, chosen[field]) for field in _TEXTS[:2] if field in chosen}
    try:
        dialogue = _dialogue(row, chosen, record)
    except RowError:  # there is nothing to judge, and who reads the texts says so
        return False
    return not _is_empty(dialogue.response if dialogue else record.get("response"))


def is_usual(field: str, column: str) -> bool:
    """True for a column that bears one of a field's first names, which nobody has to be told."""
    return any(normal_name(column) in group for group in NAMES.get(field, ())[:2])


def _said(row: Mapping[str, object], label: str | None) -> list[tuple[str, object]]:
    """The columns of the label with their values: one, or several that were named with commas between them."""
    if label is None:
        return []
    return [(column, value_at(row, column)) for column in ([label] if label in row else label.split(","))]


def _column(
    row: Mapping[str, object],
    known: Mapping[str, str],
    field: str,
    groups: Iterable[tuple[str, ...]],
    taken: set[str],
) -> str | None:
    """The column of a field: the one that the first group finds. Two of a group matter only for text and label."""
    for group in groups:
        found = [known[name] for name in group if name in known and known[name] not in taken]
        given = [column for column in found if row[column] is not None]
        if len(given) > 1 and field in ("response", "question", "label"):
            raise RowError(
                f"{' and '.join(given)} could each be the {field}; name one of them {field}",
                kind=f"two columns for {field}",
                switch=f"--field {field}={given[0]}",
            )
        if given:
            return given[0]
    return None


_ABSENT: Final = object()


def value_at(row: Mapping[str, object], column: str, *, missing: object = None) -> object:
    """The value of a column, which may lie deeper: `data.prompt`, `turns.0.text`, `turns.-1.text`."""
    if column in row:
        return row[column]
    value: Any = row
    for part in column.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and re.fullmatch(r"-?\d+", part) and -len(value) <= int(part) < len(value):
            value = value[int(part)]
        else:
            return missing
    return value


@lru_cache(maxsize=256)
def known_columns(names: tuple[str, ...]) -> Mapping[str, str]:
    """Known name → the column that bears it; a column written exactly so goes before others."""
    found: dict[str, str] = {}
    for column in names:
        name = normal_name(str(column))
        if name in COLUMNS and (name not in found or column == name):
            found[name] = column
    return found


def _dialogue(row: Mapping[str, object], chosen: Mapping[str, str], record: Mapping[str, object]) -> Dialogue | None:
    """The texts of a row that has them as messages; None, or RowError where there is no other text, if it has none."""
    for field in _TEXTS[:2]:  # some sets put a list of messages where others have a text
        if _is_messages(record.get(field)) and _is_empty(record.get(_TEXTS[1 - _TEXTS.index(field)])):
            return _conversation(record[field], chosen[field])
    if not (_is_empty(record.get("response")) and _is_empty(record.get("question"))):
        return None
    if "messages" in chosen and value_at(row, chosen["messages"]) is not None:
        return _conversation(value_at(row, chosen["messages"]), chosen["messages"])
    if record.get("response") is not None:
        return None
    raise RowError(
        f"no text to judge: no column has a name that is known for one; found {_listed(row)}",
        kind="no text to judge",
        switch=f"--field response={_likely(row)} (or prompt=, messages=)",
    )


def _listed(row: Iterable[str]) -> str:
    names = [repr(str(key)[:40]) for key in row]
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return (", ".join(names[:8]) or "no keys at all") + more


def _likely(row: Mapping[str, object]) -> str:
    """The column with the longest text."""
    texts = {column: len(value) for column, value in row.items() if isinstance(value, str)}
    return str(max(texts, key=texts.__getitem__, default="COLUMN"))[:40]


def _is_messages(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)


def _is_empty(text: object) -> bool:
    return text is None or text == ""


def _conversation(value: object, column: str) -> Dialogue:
    """The dialogue in a column: a list of messages, as such or written as JSON, in the manner of OpenAI or ShareGPT."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise RowError(f"{column}: a list of messages is expected, or one written as JSON") from None
    messages = [_message(one) for one in value] if isinstance(value, list) else value
    try:
        return dialogue_of(messages)
    except ValueError as error:
        kind = re.sub(r"message \d+: ", "", str(error))
        raise RowError(f"{column}: {error}", kind=f"{column}: {kind}") from None


def _message(message: object) -> object:
    if not isinstance(message, dict) or "role" in message:
        known = message
    else:
        known = {"role": message.get("from", message.get("speaker"))}
        known["content"] = next((message[name] for name in ("content", "value", "text") if name in message), None)
    if isinstance(known, dict) and str(known.get("role")).lower() in _ROLES:
        known = {**known, "role": _ROLES[str(known["role"]).lower()]}
    return known


def id_of(row: Mapping[str, object], fallback_id: str, reading: Reading = AS_IT_IS) -> object:
    """The row's own id where it has one and it is wanted, else the other one."""
    column = reading.fields.get("id")
    if column is None:
        column = known_columns(tuple(row)).get("id")
    own = value_at(row, column) if column and reading.ids is Ids.KEEP else None
    if isinstance(own, float) and own.is_integer():
        own = int(own)  # as tables have whole numbers where one is missing
    return fallback_id if own is None else own


def _words(value: object) -> str:
    """A source or category as words: several are joined, those of a mapping are the ones that are true."""
    if isinstance(value, dict):
        value = [name for name, is_so in value.items() if is_so is True]
    if isinstance(value, list):
        value = ", ".join(str(one) for one in value)
    try:
        return "" if value is None else storable(str(value))
    except ValueError:
        return ""


def _refusal(error: ValidationError, chosen: Mapping[str, str]) -> RowError:
    """Each wrong field under the name the user gave it, without the value's text."""
    problems: dict[str, str] = {}
    for detail in error.errors(include_url=False, include_input=False, include_context=False):
        field = str(detail["loc"][0]) if detail["loc"] else ""
        problems.setdefault(chosen.get(field, field), detail["msg"].removeprefix("Value error, "))
    said = "; ".join(f"{name}: {problem}" if name else problem for name, problem in problems.items())
    switch = "--ids row" if "id" in problems else ""
    return RowError(said, kind=re.sub(r"\d[\d,]*", "…", said), switch=switch)
