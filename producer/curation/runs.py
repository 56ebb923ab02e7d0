"""The fleet's side of curation: the name of a run, and what its guard said, read from the ledger."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import sqlalchemy as sa

from infra.ledger.items import Ending, settled_of
from producer.curation.rows import Texts
from schemas.items import Item
from schemas.runs import RunSpec


def run_name(spec: RunSpec, items: Iterable[Item]) -> tuple[int, str]:
    """The number of items, and the name of the run in which this guard answers these items.

    The name is a digest of both, so that the same question is asked once, whatever was interrupted.
    """
    digest = hashlib.blake2b(spec.model_dump_json().encode(), digest_size=8)
    count = 0
    for count, item in enumerate(items, 1):  # noqa: B007 - the last one is the number of items
        digest.update(item.id.encode() + b"\0" + item.content_hash)
    return count, f"curate-{spec.guard}-{digest.hexdigest()}"


def verdicts_of(engine: sa.Engine, run_id: str, item_ids: Sequence[str]) -> dict[str, Ending]:
    """The verdicts on these items, by item id."""
    return {item_id: ends[0] for item_id, ends in settled_of(engine, run_id, item_ids).items()}


def texts_of(engine: sa.Engine, run_id: str) -> Texts:
    """The texts that a generator wrote in a run."""

    def read(item_ids: Sequence[str]) -> dict[str, str]:
        return {item_id: end.raw for item_id, end in verdicts_of(engine, run_id, item_ids).items() if end.raw}

    return read
