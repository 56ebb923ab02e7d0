"""Watching a run: one line that moves on a terminal, until the run has ended."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import sqlalchemy as sa
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeRemainingColumn
from sqlalchemy.exc import DBAPIError

from infra.ledger.reading import RunStatus, run_status

_POLL_S: Final = 0.2


def wait_for_end(engine: sa.Engine, run_id: str, *, check: Callable[[], None] = lambda: None) -> RunStatus:
    """Block until the run has its report; `check` is called meanwhile and may raise."""
    while not (status := run_status(engine, run_id)).state.ended:
        check()
        time.sleep(_POLL_S)
    return status


@contextmanager
def progress_line(engine: sa.Engine, run_id: str, console: Console, *, total_items: int | None) -> Iterator[None]:
    """Show items settled, items/s and time left while the context lasts (nothing unless on a terminal)."""
    if not console.is_terminal:
        yield
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[count]}"),
        TextColumn("{task.fields[rate]}", style="dim"),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
    )
    stop = threading.Event()
    with Progress(*columns, console=console, expand=True) as progress:
        task = progress.add_task("judging", total=total_items, count="", rate="")
        thread = threading.Thread(target=_follow, args=(engine, run_id, progress, task, stop), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def _follow(engine: sa.Engine, run_id: str, progress: Progress, task: TaskID, stop: threading.Event) -> None:
    first: tuple[float, int] | None = None
    while True:
        last_look = stop.is_set()
        try:
            status = run_status(engine, run_id)
        except DBAPIError:
            return  # whoever waits for the run meets the same error and says it
        settled = status.counts.settled
        now = time.monotonic()
        first = first or (now, settled)
        total = status.expected or progress.tasks[0].total
        progress.update(
            task,
            completed=settled,
            total=total,
            count=f"{settled:,} of {total:,.0f}" if total else f"{settled:,}",
            rate=_rate(settled - first[1], now - first[0]),
        )
        if last_look:
            return
        stop.wait(_POLL_S)


def _rate(items: int, seconds: float) -> str:
    return f"{items / seconds:,.0f} items/s" if items and seconds > _POLL_S else ""
