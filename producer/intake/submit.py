"""Submission: ledger first, then chunks, then the seal. Idempotent by item, so that it can be resumed anywhere.

Holds one window of items in memory, whatever the size of the source.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from infra import tracing
from infra.broker.backpressure import held_back
from infra.broker.chunking import in_chunks
from infra.errors import DataError
from infra.ledger import intake
from infra.ledger.intake import Submission, accept_submitted
from infra.ledger.items import accepted_hashes
from infra.ledger.runs import run_status
from infra.retry import retry
from infra.servers.services import Services
from schemas.items import Item
from schemas.runs import InvalidRow, RunSpec

_FIRST_WINDOW_ITEMS: Final = 256
_POLL_S: Final = 0.1


def submit(
    services: Services,
    run_id: str,
    spec: RunSpec,
    items: Iterable[Item],
    *,
    check: Callable[[], None] = lambda: None,
    on_held: Callable[[str], None] = lambda _: None,
    submission_of: Callable[[Item], Submission] | None = None,
) -> int:
    """Accept and enqueue every item of the stream that the run does not hold yet; returns how many it was.

    `check` may raise to stop; it is called where nothing is left half done: all that is accepted is queued as well.
    `on_held` gets the reason whenever a look finds that the queue takes no more.
    `submission_of` gives the submission of an item that came through the gateway.

    Raises:
        RunError: the run was sealed or cancelled meanwhile.
        DataError: an item is in the run already with another content, or twice in the stream.
    """
    settings = services.settings
    # A new run holds nothing yet; should another producer feed it as well, a second copy of an item is refused.
    is_new = run_status(services.engine, run_id).counts.accepted == 0
    accepted = 0
    for window in _windows(items, max_items=settings.window_items, max_bytes=settings.window_bytes):
        known = {} if is_new else accepted_hashes(services.engine, run_id, [item.id for item in window])
        for item in window:
            if known.get(item.id) and known[item.id] != item.content_hash:  # no hash: nothing of it is kept
                raise DataError(
                    f"item {item.id!r} is in run {run_id} with another content: "
                    f"{known[item.id].hex()} there, {item.content_hash.hex()} here"
                )
        fresh = [item for item in window if item.id not in known]
        if fresh:
            while (why := retry(lambda: held_back(services, spec))) is not None:  # back-pressure: the source is held
                on_held(why)
                check()
                time.sleep(_POLL_S)
            submissions = {item.id: submission_of(item) for item in fresh} if submission_of else None
            groups = cut_chunks(fresh, max_items=settings.chunk_items, max_bytes=settings.chunk_bytes)
            with tracing.span("libra.submit", guard=spec.guard, lane=spec.lane.value, run_id=run_id, items=len(fresh)):
                chunks = (
                    intake.accept(services.engine, run_id, spec, groups)
                    if submissions is None
                    else accept_submitted(services.engine, run_id, spec, groups, submissions)
                )
                for chunk in chunks:
                    services.publisher.judge(chunk)
        accepted += len(fresh)
        check()
    return accepted


def seal(services: Services, run_id: str, *, invalid_count: int = 0, invalid_rows: Sequence[InvalidRow] = ()) -> None:
    """End the run's intake, so that it can complete."""
    if intake.seal(services.engine, run_id, invalid_count=invalid_count, invalid_rows=invalid_rows):
        services.publisher.finalize(run_id)


def cut_chunks(items: Sequence[Item], *, max_items: int, max_bytes: int) -> list[list[Item]]:
    """Group neighbours in length into chunks of at most so many items and text bytes (a larger item goes alone)."""
    return in_chunks(sorted(items, key=lambda item: item.text_bytes), max_items=max_items, max_bytes=max_bytes)


def _windows(items: Iterable[Item], *, max_items: int, max_bytes: int) -> Iterator[list[Item]]:
    """Windows that double from a few chunks on: the fleet has work at once, lengths are sorted over many soon."""
    window: list[Item] = []
    wanted = min(_FIRST_WINDOW_ITEMS, max_items)
    size = 0
    for item in items:
        window.append(item)
        size += item.text_bytes
        if len(window) >= wanted or size >= max_bytes:
            yield window
            window, size = [], 0
            wanted = min(2 * wanted, max_items)
    if window:
        yield window
