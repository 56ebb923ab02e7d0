"""Training rows as files hold them: Libra Bench records with a label, and where each of them came from. Torch-free.

Rows of the data pipeline carry a `provenance` object (origin, licence, generator, stage, parent_id, seed); rows of
public sets need none.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from infra.errors import DataError, UsageError
from schemas.items import Item, Label, LibraRecord
from worker.training.recipe import DataFile


class Provenance(BaseModel):
    """The history of a generated row. All but its origin may be unknown."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    origin: str
    licence: str | None = None
    generator: str | None = None
    stage: str | None = None
    parent_id: str | int | None = None
    seed: int | None = None


class _Row(LibraRecord):
    provenance: Provenance | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled item with the analysis that an answer should give (may be empty), its licence, its weight."""

    item: Item
    label: Label
    analysis: str = ""
    licence: str = "not stated"
    origin: str = ""
    weight: float = 1.0

    @property
    def group(self) -> str:
        """The question, or the text where there is none: a split keeps samples of one group together."""
        return self.item.question or self.item.response


class Count(NamedTuple):
    """Rows of one source and licence."""

    source: str
    licence: str
    safe: int
    unsafe: int


def read_samples(files: Iterable[DataFile]) -> list[Sample]:
    """All rows of some files, in their order.

    Raises:
        DataError: a file is not there, or a row cannot be trained on; file and place are named.
        UsageError: a file is of a kind that cannot be read here.
    """
    return [sample_of(raw, place, file) for file in files for place, raw in raw_rows(file.path)]


def counts_of(samples: Iterable[Sample]) -> list[Count]:
    """The rows of each source and licence, counted."""
    found = Counter((sample.origin, sample.licence, sample.label) for sample in samples)
    keys = sorted({key[:2] for key in found})
    return [Count(*key, found[*key, Label.SAFE], found[*key, Label.UNSAFE]) for key in keys]


def split(samples: Sequence[Sample], share: float, seed: int) -> tuple[list[Sample], list[Sample]]:
    """The samples that stay, and those held out: about `share` of the questions, decided by hash and seed."""
    kept: list[Sample] = []
    held: list[Sample] = []
    for sample in samples:
        digest = hashlib.blake2b(f"{seed}\0{sample.group}".encode(), digest_size=8).digest()
        (held if int.from_bytes(digest) < share * 2**64 else kept).append(sample)
    return kept, held


def without(samples: Iterable[Sample], contents: Collection[bytes]) -> list[Sample]:
    """The rows whose question and response are none of these (`Item.content_hash`)."""
    return [sample for sample in samples if sample.item.content_hash not in contents]


def file_digest(path: Path) -> str:
    """16 hex characters over a file's content.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error


def raw_rows(path: Path) -> Iterator[tuple[str, object]]:
    """Every row with its place, such as "hard.jsonl, line 3"."""
    readers = {".jsonl": _json_lines, ".json": _json_array, ".parquet": _parquet}
    reader = readers.get(path.suffix)
    if reader is None:
        raise UsageError(f"{path}: training data is .jsonl, .json or .parquet")
    try:
        yield from reader(path)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {error}") from error


def _json_lines(path: Path) -> Iterator[tuple[str, object]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield f"{path.name}, line {number}", _parsed(line, f"{path}, line {number}")


def _json_array(path: Path) -> Iterator[tuple[str, object]]:
    rows = _parsed(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(rows, list):
        raise DataError(f"{path}: a JSON array of records was expected")
    for number, raw in enumerate(rows, 1):
        yield f"{path.name}, record {number}", raw


def _parsed(text: str, place: str) -> Any:  # noqa: ANN401 - anything JSON can hold
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{place}: not JSON: {error}") from error


def _parquet(path: Path) -> Iterator[tuple[str, object]]:
    try:
        from pyarrow import ArrowException  # noqa: PLC0415 - an extra
        from pyarrow.parquet import ParquetFile  # noqa: PLC0415
    except ImportError as error:
        raise UsageError(f"{path}: reading Parquet needs pyarrow: pip install 'libra-fleet[parquet]'") from error
    number = 0
    try:
        for batch in ParquetFile(path).iter_batches():
            for raw in batch.to_pylist():
                number += 1
                yield f"{path.name}, row {number}", raw
    except ArrowException as error:
        raise DataError(f"{path}: not Parquet: {error}") from error


def sample_of(raw: object, place: str, file: DataFile) -> Sample:
    """A record as a sample.

    Raises:
        DataError: it cannot be trained on; the message names the place and never repeats the text.
    """
    try:
        row = _Row.model_validate(raw)
        item = row.to_item()
    except ValidationError as error:
        detail = error.errors(include_input=False, include_url=False)[0]
        raise DataError(f"{place}: {'.'.join(map(str, detail['loc']))}: {detail['msg']}") from error
    if item.truth is None:
        raise DataError(f"{place}: a training row needs a label")
    made = row.provenance
    return Sample(
        item=item,
        label=item.truth,
        analysis=(row.analyze or "").strip(),
        licence=(made and made.licence) or file.licence,
        origin=(made and made.origin) or item.source or file.source or file.path.name,
    )
