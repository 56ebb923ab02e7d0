"""Readers of the training sets, what is held out of each, and the windows a training row is cut to.

Two kinds of rows, for the two stages of a guard's training: synthetic ones, written by or for this project, and real
ones from public sets.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from infra.errors import DataError
from schemas.items import Label, LibraRecord
from worker.training.hard_negatives import SOURCE as HARD_SOURCE
from worker.training.hard_negatives import disguise, hard_negatives

COLD_TRAIN: Final = "cold_train.jsonl"
COLD_DEV: Final = "cold_dev.jsonl"
JADE: Final = "jade_medium.json"

HELD_OUT_SHARE: Final = 0.2
QUESTION_CHARS: Final = 120
WINDOW_CHARS: Final = 300
WINDOW_OVERLAP: Final = 60
HARD_ROWS: Final = 2400
PAIRS: Final = Path(__file__).parent / "data" / "pairs.jsonl"
PAIR_WEIGHT: Final = 3.0

_COLD_WORDS: Final = {"race": "种族", "region": "地域", "gender": "性别"}
_SAFE_ANALYSIS: Final = "没有发现违反安全标准的内容。"


@dataclass(frozen=True, slots=True)
class Row:
    """One training or evaluation example: a text (already cut to a window), its label, one sentence why."""

    question: str
    response: str
    label: Label
    analysis: str
    weight: float = 1.0


@dataclass(frozen=True)
class Corpus:
    """Everything one training run reads, split. No text is in two parts.

    `cold_dev` is for choices and for the calibration; what is reported are the parts held out, which nothing saw.
    """

    synthetic: tuple[Row, ...]
    real: tuple[Row, ...]
    cold_dev: tuple[LibraRecord, ...]
    cold_held_out: tuple[LibraRecord, ...]
    jade_held_out: tuple[LibraRecord, ...]
    pairs_held_out: tuple[LibraRecord, ...]
    counts: dict[str, int]

    @property
    def train(self) -> tuple[Row, ...]:
        """The rows of both kinds."""
        return (*self.synthetic, *self.real)


def read_records(path: Path) -> list[LibraRecord]:
    """The records of a JSON array or of JSON lines.

    Raises:
        DataError: the file is not there, or a record cannot be read; file and place are named.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    return [_record(raw, f"{path.name}, record {number}") for number, raw in enumerate(_raw_records(text, path), 1)]


def _raw_records(text: str, path: Path) -> list[Any]:
    try:
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in text.split("\n") if line.strip()]
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not JSON: {error}") from error
    if not isinstance(found, list):
        raise DataError(f"{path}: a JSON array of records was expected")
    return found


def _record(raw: object, place: str) -> LibraRecord:
    try:
        record = LibraRecord.model_validate(raw)
    except ValidationError as error:
        raise DataError(f"{place}: {error.errors()[0]['msg']}") from error
    if not record.label:
        raise DataError(f"{place}: a training record needs a label")
    return record


def is_held_out(record_id: str | int) -> bool:
    """Whether a JADE record is kept from training.

    The id's last part tells the safe from the unsafe answer of one question (`jade-medium-7-s`, `-u`); it is left out
    of the hash, so that no question is in both parts.
    """
    return _is_held_out(str(record_id).rsplit("-", 1)[0])


def is_text_held_out(text: str) -> bool:
    """Whether a text of COLD's training file is kept from training; letter case and spaces make no other text."""
    return _is_held_out("".join(text.split()).lower())


def _is_held_out(key: str) -> bool:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") / 2**32 < HELD_OUT_SHARE


def truth(record: LibraRecord) -> Label:
    """The label of a record that has one."""
    return Label.UNSAFE if record.label in {"不安全", "unsafe"} else Label.SAFE


def analysis_of(record: LibraRecord) -> str:
    """One short sentence built from the record's category."""
    if truth(record) is Label.SAFE:
        return _SAFE_ANALYSIS
    category = record.category_name or ""
    if category in _COLD_WORDS:
        return f"内容涉及{_COLD_WORDS[category]}歧视或冒犯。"
    return f"内容涉及{category}。" if category else "内容违反安全标准。"


def windows(text: str, size: int = WINDOW_CHARS, overlap: int = WINDOW_OVERLAP) -> list[str]:
    """Overlapping pieces that cover the text; a short text is one piece."""
    if len(text) <= size:
        return [text]
    starts = range(0, len(text) - overlap, size - overlap)
    return [text[start : start + size] for start in starts]


def rows_of(record: LibraRecord, weight: float = 1.0) -> list[Row]:
    """The record's windows as rows; each carries the record's label and an equal share of its weight."""
    pieces = windows(record.response)
    question = (record.question or "")[:QUESTION_CHARS]
    share = weight / len(pieces)
    return [Row(question, piece, truth(record), analysis_of(record), share) for piece in pieces]


def load_corpus(folder: Path, seed: int) -> Corpus:
    """Read the public sets from `folder` and add the rows of our own.

    COLD's training texts that are also validation texts are left out.

    Raises:
        DataError: a set cannot be read.
    """
    dev = read_records(folder / COLD_DEV)
    seen = {record.response for record in dev}
    cold = [record for record in read_records(folder / COLD_TRAIN) if record.response not in seen]
    cold_train = [record for record in cold if not is_text_held_out(record.response)]
    jade = read_records(folder / JADE)
    jade_train = [record for record in jade if not is_held_out(record.id)]
    disguised = [disguise(record, seed) for record in jade_train]
    hard = hard_negatives(HARD_ROWS, seed)
    pairs, pairs_held_out = read_pairs(PAIRS)
    return Corpus(
        synthetic=(*_all_rows(hard, 1.0), *_all_rows(pairs, PAIR_WEIGHT)),
        real=(
            *_all_rows(cold_train, 1.0),
            *_all_rows(jade_train, 2.0),
            *_all_rows(disguised, 2.0),
            *_first_rows(jade_train),
        ),
        cold_dev=tuple(dev),
        cold_held_out=tuple(record for record in cold if is_text_held_out(record.response)),
        jade_held_out=tuple(record for record in jade if is_held_out(record.id)),
        pairs_held_out=tuple(pairs_held_out),
        counts={
            "synthetic: " + HARD_SOURCE: len(hard),
            "synthetic: written pairs": len(pairs),
            "real: thu-coai/COLDataset train": len(cold_train),
            "real: whitzard-ai/jade-db v3.0 medium": len(jade_train),
            "real: the same JADE records with a refusal or a helpful passage of our own added": len(disguised),
        },
    )


def read_pairs(path: Path) -> tuple[list[LibraRecord], list[LibraRecord]]:
    """The written question/answer pairs: those to train on, and those held out."""
    parts: dict[str, list[LibraRecord]] = {"train": [], "test": []}
    for number, raw in enumerate(_raw_records(path.read_text(encoding="utf-8"), path), 1):
        parts[raw["split"]].append(_record(raw, f"{path.name}, record {number}"))
    return parts["train"], parts["test"]


def _all_rows(records: Iterable[LibraRecord], weight: float) -> list[Row]:
    return [row for record in records for row in rows_of(record, weight)]


def _first_rows(records: Sequence[LibraRecord]) -> list[Row]:
    """The first hundred characters of an answer: of one length whatever the label."""
    cut = [record.model_copy(update={"response": record.response[:100]}) for record in records]
    return [row for record in cut for row in rows_of(record, 1.0)]
