"""What a row says of the truth: columns that hold a label, and words that mean one. Knows no texts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from producer.datasets.rows import RowError, normal_name
from schemas.items import Label
from schemas.reading import ANY_OTHER, Reading

OF_RESPONSES: Final = ("response_label", "response_harm_label", "response_safety_label")
OF_PROMPTS: Final = ("prompt_label", "prompt_harm_label", "prompt_safety_label")
"""Labels of one side: read where that side is what is judged, and no `label` stands beside them."""
YES_MEANS: Final = {
    **dict.fromkeys(("is_safe", "safe"), Label.SAFE),
    **dict.fromkeys(("is_unsafe", "unsafe", "is_harmful", "harmful", "is_toxic", "toxic", "flagged"), Label.UNSAFE),
}
"""Columns that say yes or no (true or false, 1 or 0), and what yes means."""
LABEL_COLUMNS: Final = frozenset({*OF_RESPONSES, *OF_PROMPTS, *YES_MEANS})
"""Names that are looked at where a row has no `label`."""

WORDS: Final = {
    **dict.fromkeys(("安全", "safe", "unharmful", "harmless", "benign", "无害", "合规", "不违规", "正常"), Label.SAFE),
    **dict.fromkeys(("不安全", "unsafe", "harmful", "有害", "违规"), Label.UNSAFE),
}
"""Words that say a label by themselves, in small letters."""
_YES: Final = frozenset({"true", "1", "yes", "y", "是"})
_NO: Final = frozenset({"false", "0", "no", "n", "否"})
_WHOLE: Final = re.compile(r"(-?\d+)\.0+")
"""A whole number as tables write it where another one is missing."""


def label_columns(
    row: Mapping[str, object], known: Mapping[str, str], reading: Reading, *, has_response: Callable[[], bool]
) -> str | None:
    """The column with the truth of what is judged, in a row without a `label`; None where there is none.

    Raises:
        RowError: there are several.
    """
    if "label" in reading.fields:
        return reading.fields["label"] or None
    found = []
    if not known.keys().isdisjoint({*OF_RESPONSES, *OF_PROMPTS}):
        sides = OF_RESPONSES if has_response() else OF_PROMPTS
        found = [known[name] for name in sides if name in known and row[known[name]] is not None]
    found = found or [known[name] for name in YES_MEANS if name in known and label_word(row[known[name]]) in _YES | _NO]
    if len(found) > 1:
        raise RowError(
            f"{' and '.join(found)} could each be the label",
            kind="two columns for label",
            switch=f"--field label={found[0]}, or {','.join(found)} (unsafe where one is)",
        )
    return found[0] if found else None


def truth_in(values: Iterable[tuple[str, object]], reading: Reading) -> str | None:
    """The label that (column, value) pairs say: unsafe where one does. None where none says anything.

    Raises:
        RowError: a value means no label.
    """
    said = {label for column, value in values if (label := _label(column, value, reading))}
    if not said:
        return reading.labels.get(ANY_OTHER)
    return (Label.UNSAFE if Label.UNSAFE in said else Label.SAFE).value


def _label(column: str, value: object, reading: Reading) -> Label | None:
    if value is None or value == "":
        return None
    word = label_word(value)
    if word is None:
        raise RowError(f"{column}: Input should be a valid string", switch="--field label= (no label)")
    if not word:
        return None
    meaning = YES_MEANS.get(normal_name(column))
    if meaning and word in _NO:
        meaning = meaning.opposite
    found = reading.label_of(word) or (meaning if word in _YES | _NO else None) or WORDS.get(word)
    found = found or reading.labels.get(ANY_OTHER)
    if found is None:
        raise _no_label(column, str(value), word)
    return found


def label_word(value: object) -> str | None:
    """A label's value as a word in small letters, whole numbers without a point; None where it is no word."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str | int | float):
        return None
    word = str(value).strip().lower()
    whole = _WHOLE.fullmatch(word)
    return whole[1] if whole else word


def _no_label(column: str, value: str, word: str) -> RowError:
    if word in _YES | _NO or re.fullmatch(r"-?[\d.]+", word):
        problem = f"{word} says neither safe nor unsafe; write 安全, 不安全, safe or unsafe"
    else:
        problem = f"unknown label {value!r}; expected 安全, 不安全, safe, unsafe or none"
    return RowError(
        f"{column}: {problem}",
        kind=f"{column}: {word[:40]!r} is no label",
        switch=f"--label unsafe={word[:40]} (or safe=), or --field label= for no label",
    )
