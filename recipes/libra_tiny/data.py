"""The sets that libra-tiny is trained on, the held-out part of each, and the windows that a training row is cut to.

Two kinds of rows, for the two stages of its training: synthetic ones, written by or for this project, and real ones
from public sets.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, cast

from recipes.libra_tiny.hard_negatives import SOURCE as HARD_SOURCE
from recipes.libra_tiny.hard_negatives import disguise, hard_negatives
from schemas.items import Label
from worker.training.recipe import DataFile
from worker.training.samples import Sample, raw_rows, read_samples, sample_of

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


@dataclass(frozen=True)
class Corpus:
    """All samples of one training run, split. No text is in two parts.

    `cold_dev` is for choices and for the calibration; what is reported are the parts held out, which nothing saw.
    """

    synthetic: tuple[Sample, ...]
    real: tuple[Sample, ...]
    cold_dev: tuple[Sample, ...]
    cold_held_out: tuple[Sample, ...]
    jade_held_out: tuple[Sample, ...]
    pairs_held_out: tuple[Sample, ...]
    counts: dict[str, int]

    @property
    def train(self) -> tuple[Sample, ...]:
        """The rows of both kinds."""
        return (*self.synthetic, *self.real)


def is_held_out(record_id: str) -> bool:
    """True for a JADE record that is kept from training.

    The id's last part tells the safe from the unsafe answer of one question (`jade-medium-7-s`, `-u`); it is left out
    of the hash, so that no question is in both parts.
    """
    return _is_held_out(record_id.rsplit("-", 1)[0])


def is_text_held_out(text: str) -> bool:
    """True for a text of COLD's training file that is kept from training; letter case and spaces do not matter."""
    return _is_held_out("".join(text.split()).lower())


def _is_held_out(key: str) -> bool:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") / 2**32 < HELD_OUT_SHARE


def analysis_of(sample: Sample) -> str:
    """One short sentence built from the item's category."""
    if sample.label is Label.SAFE:
        return _SAFE_ANALYSIS
    category = sample.item.category
    if category in _COLD_WORDS:
        return f"内容涉及{_COLD_WORDS[category]}歧视或冒犯。"
    return f"内容涉及{category}。" if category else "内容违反安全标准。"


def windows(text: str, size: int = WINDOW_CHARS, overlap: int = WINDOW_OVERLAP) -> list[str]:
    """Overlapping pieces that cover the text; a short text is one piece."""
    if len(text) <= size:
        return [text]
    starts = range(0, len(text) - overlap, size - overlap)
    return [text[start : start + size] for start in starts]


def windowed(sample: Sample, weight: float = 1.0) -> list[Sample]:
    """The sample's windows; each carries its label and an equal share of its weight, and an analysis of our own."""
    pieces = windows(sample.item.response)
    question = sample.item.question[:QUESTION_CHARS]
    return [
        replace(
            sample,
            item=sample.item.model_copy(update={"question": question, "response": piece}),
            analysis=analysis_of(sample),
            weight=weight / len(pieces),
        )
        for piece in pieces
    ]


def load_corpus(folder: Path, seed: int) -> Corpus:
    """Read the public sets from `folder` and add the rows of our own.

    COLD's training texts that are also validation texts are left out.

    Raises:
        DataError: a set cannot be read.
    """
    dev = read_samples([DataFile(path=folder / COLD_DEV)])
    seen = {sample.item.response for sample in dev}
    cold = [s for s in read_samples([DataFile(path=folder / COLD_TRAIN)]) if s.item.response not in seen]
    cold_train = [sample for sample in cold if not is_text_held_out(sample.item.response)]
    jade = read_samples([DataFile(path=folder / JADE)])
    jade_train = [sample for sample in jade if not is_held_out(sample.item.id)]
    disguised = [disguise(sample, seed) for sample in jade_train]
    hard = hard_negatives(HARD_ROWS, seed)
    pairs, pairs_held_out = read_pairs(PAIRS)
    return Corpus(
        synthetic=(*_all_windows(hard, 1.0), *_all_windows(pairs, PAIR_WEIGHT)),
        real=(
            *_all_windows(cold_train, 1.0),
            *_all_windows(jade_train, 2.0),
            *_all_windows(disguised, 2.0),
            *_beginnings(jade_train),
        ),
        cold_dev=tuple(dev),
        cold_held_out=tuple(sample for sample in cold if is_text_held_out(sample.item.response)),
        jade_held_out=tuple(sample for sample in jade if is_held_out(sample.item.id)),
        pairs_held_out=tuple(pairs_held_out),
        counts={
            "synthetic: " + HARD_SOURCE: len(hard),
            "synthetic: written pairs": len(pairs),
            "real: thu-coai/COLDataset train": len(cold_train),
            "real: whitzard-ai/jade-db v3.0 medium": len(jade_train),
            "real: the same JADE records with a refusal or a helpful passage of our own added": len(disguised),
        },
    )


def read_pairs(path: Path) -> tuple[list[Sample], list[Sample]]:
    """The written question/answer pairs: those to train on, and those held out."""
    parts: dict[str, list[Sample]] = {"train": [], "test": []}
    for place, raw in raw_rows(path):
        split = cast("dict[str, Any]", raw)["split"]
        parts[split].append(sample_of(raw, place, DataFile(path=path)))
    return parts["train"], parts["test"]


def _all_windows(samples: Iterable[Sample], weight: float) -> list[Sample]:
    return [window for sample in samples for window in windowed(sample, weight)]


def _beginnings(samples: Sequence[Sample]) -> list[Sample]:
    """The first hundred characters of an answer: of one length whatever the label."""
    cut = [replace(s, item=s.item.model_copy(update={"response": s.item.response[:100]})) for s in samples]
    return _all_windows(cut, 1.0)
