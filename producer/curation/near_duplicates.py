"""Near-duplicates by MinHash over character 3-grams, in the order rows come: the first of its kind stays."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from infra.errors import UsageError
from producer.curation.rows import Row

_PERMUTATIONS: Final = 128
_BANDS: Final = 16
_SHINGLE_CHARS: Final = 3


def distinct(rows: Iterable[Row], threshold: float) -> Iterator[Row]:
    """The rows whose question and response are not nearly those of an earlier row (Jaccard above the threshold).

    Raises:
        UsageError: the library is not installed.
    """
    try:
        from rensa import RMinHash, RMinHashLSH  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise UsageError("de-duplication needs: pip install 'libra-fleet[curate]'") from error
    index = RMinHashLSH(threshold=threshold, num_perm=_PERMUTATIONS, num_bands=_BANDS)
    kept: list[RMinHash] = []
    for row in rows:
        sketch = RMinHash(num_perm=_PERMUTATIONS, seed=1)
        sketch.update(shingles(f"{row['question']}\n{row['response']}"))
        if any(sketch.jaccard(kept[at]) > threshold for at in index.query(sketch)):
            continue
        index.insert(len(kept), sketch)
        kept.append(sketch)
        yield row


def shingles(text: str) -> list[str]:
    """All character 3-grams, each once; a shorter text is one shingle."""
    return sorted({text[at : at + _SHINGLE_CHARS] for at in range(max(1, len(text) - _SHINGLE_CHARS + 1))})
