"""Watching a run: a progress line on a terminal, the stages of a cascade, and Ctrl-C, which leaves the run as it is."""

from __future__ import annotations

import shlex
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import sqlalchemy as sa
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeRemainingColumn
from sqlalchemy.exc import DBAPIError

from infra.ledger.runs import RunStatus, find_run, run_status, stages_of
from infra.process import deferred_interrupt
from infra.servers.services import Services
from libra_fleet.cli.show import err, say
from schemas.runs import RunState

_POLL_S: Final = 0.2


def wait_for_end(engine: sa.Engine, run_id: str, *, check: Callable[[], None] = lambda: None) -> RunStatus:
    """Block until the run has its report; `check` is called meanwhile and may raise."""
    while not (status := run_status(engine, run_id)).state.ended:
        check()
        time.sleep(_POLL_S)
    return status


def follow_stages(found: Services, run_id: str, check: Callable[[], None]) -> None:
    """Follow a cascade from its first run, which has ended, to the end of its last stage; nothing for other runs."""
    while (stages := stages_of(found.engine, run_id))[-1].state.ended is False:
        stage = stages[-1]
        say(f"what was not sure goes on to {stage.spec.guard}: run {stage.name}")
        with progress_line(found.engine, stage.id, err, total_items=stage.expected):
            wait_for_end(found.engine, stage.id, check=check)


@contextmanager
def detaching(found: Services, run_id: str, check: Callable[[], None] = lambda: None) -> Iterator[Callable[[], None]]:
    """Ctrl-C leaves the run as it is and says how to come back.

    It takes effect where the yielded function is called, which then calls `check`.
    """
    try:
        with deferred_interrupt() as interrupted:

            def check_both() -> None:
                interrupted()
                check()

            yield check_both
    except KeyboardInterrupt:
        status = find_run(found.engine, run_id)
        say("\nnothing was submitted" if status is None else _how_to_come_back(status, embedded=found.embedded))
        raise


def _how_to_come_back(run: RunStatus, *, embedded: bool) -> str:
    data = " FILE" if run.spec.source == "-" else ""
    command = (
        f"resume {shlex.quote(run.name)}{data}" if run.state is RunState.OPEN else f"watch {shlex.quote(run.name)}"
    )
    fate = "it rests while no fleet runs" if embedded else "the fleet goes on with what is submitted"
    return f"\ndetached from run {run.name}; {fate}. Come back with: libra run {command}"


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
