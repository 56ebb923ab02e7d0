"""The servers that a command works on, the local fleet that judges for it, and the wait for a run's end."""

from __future__ import annotations

import shlex
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Final

import redis
import sqlalchemy as sa
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeRemainingColumn
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from infra.errors import ServerError
from infra.guard_catalogue import GUARDS
from infra.ledger.runs import RunStatus, find_run, run_status, stages_of
from infra.process import deferred_interrupt
from infra.servers.services import Services, services
from infra.settings import load_settings
from libra_fleet.cli.options import GuardChoice, LocalFleetOptions
from libra_fleet.cli.show import err, say
from libra_fleet.machine.fleet import LocalFleet, worker_is_up
from schemas.guards import Family
from schemas.runs import RunSpec, RunState

SERVERS_WAIT_S: Final = 3.0
"""A person waits so long to hear that a server is not there; LIBRA_WAIT_FOR_SERVERS_S overrules it."""


@contextmanager
def connected() -> Iterator[Services]:
    """Open the servers for a command that a person waits for; one that is or goes away is a ServerError."""
    settings = load_settings()
    if "wait_for_servers_s" not in settings.model_fields_set:
        settings = settings.model_copy(update={"wait_for_servers_s": SERVERS_WAIT_S})
    with services(settings) as found:
        try:
            yield found
        except (OperationalError, InterfaceError) as error:
            raise ServerError(f"lost Postgres: {str(error.orig).strip()}") from error
        except redis.RedisError as error:
            raise ServerError(f"lost Redis: {error}") from error


@contextmanager
def fleet_for(
    found: Services,
    spec: RunSpec,
    choice: LocalFleetOptions,
    *,
    needed: bool = True,
    worker_options: Sequence[str] = (),
    says_words: bool = True,
) -> Iterator[Callable[[], None]]:
    """A local fleet where one is wanted, or a hint where a worker is missing; yields a check on the fleet."""
    guards = [GuardChoice(spec.guard, spec.checkpoint), *(GuardChoice(s.guard, s.checkpoint) for s in spec.stages)]
    is_local = needed and (choice.local or (choice.local is None and found.embedded))
    with ExitStack() as stack:
        fleets = []
        for at, guard in enumerate(guards):
            if is_local:
                checkpoint = ["--checkpoint", guard.checkpoint] if guard.checkpoint else []
                family = spec.family if at == 0 else None
                if says_words:
                    say_words(guard, family)
                words = ["--family", family] if family else []
                options = ["--devices", choice.devices, *checkpoint, *words, *worker_options]
                fleet = LocalFleet(found, guard.name, worker_options=options, say=lambda what: say(f"{what} …"))
                fleets.append(stack.enter_context(fleet))
            elif needed and not worker_is_up(found, guard.name):
                say(f"no worker for {guard.name} is up yet: start one with `libra fleet worker --guard {guard.name}`")

        def check() -> None:
            for fleet in fleets:
                fleet.check()

        yield check


def say_words(guard: GuardChoice, family: str | None) -> None:
    """Say in whose words a checkpoint of the user's own is asked."""
    if family or (guard.checkpoint and guard.name not in GUARDS and guard.checkpoint != Family.FAKE):
        from worker.guards.family import words_of  # noqa: PLC0415 - a guard with a card is asked as that says

        say(f"{guard.name}: {words_of(guard.checkpoint or guard.name, family).said}")


_POLL_S: Final = 0.2


def wait_for_end(engine: sa.Engine, run_id: str, *, check: Callable[[], None] = lambda: None) -> RunStatus:
    """Block until the run has its report; `check` is called meanwhile and may raise."""
    while not (status := run_status(engine, run_id)).state.ended:
        check()
        time.sleep(_POLL_S)
    return status


def wait_for_report(found: Services, run_id: str) -> None:
    """Block until the run has its report, written by a collector of this command's own where servers are embedded."""
    with LocalFleet(found, None) if found.embedded else nullcontext() as fleet:
        wait_for_end(found.engine, run_id, check=fleet.check if fleet else lambda: None)


def follow_stages(found: Services, run_id: str, check: Callable[[], None]) -> None:
    """Follow a cascade from its first run, which has ended, to the end of its last stage; nothing for other runs."""
    while (stages := stages_of(found.engine, run_id))[-1].state.ended is False:
        stage = stages[-1]
        say(f"what was not sure goes on to {stage.spec.guard}: run {stage.name}")
        with progress_line(found.engine, stage.id, total_items=stage.expected):
            wait_for_end(found.engine, stage.id, check=check)


@contextmanager
def interruptible(check: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """Let Ctrl-C take effect only where the yielded function is called, which then calls `check`."""
    with deferred_interrupt() as interrupted:

        def check_both() -> None:
            interrupted()
            check()

        yield check_both


@contextmanager
def detaching(found: Services, run_id: str, check: Callable[[], None] = lambda: None) -> Iterator[Callable[[], None]]:
    """As `interruptible`; Ctrl-C leaves the run as it is and says how to come back."""
    try:
        with interruptible(check) as check_both:
            yield check_both
    except KeyboardInterrupt:
        run = find_run(found.engine, run_id)
        if run is None:
            say("\nnothing was submitted")
            raise
        name, data = shlex.quote(run.name), " FILE" if run.spec.source == "-" else ""
        command = f"resume {name}{data}" if run.state is RunState.OPEN else f"watch {name}"
        fate = "it rests while no fleet runs" if found.embedded else "the fleet goes on with what is submitted"
        say(f"\ndetached from run {run.name}; {fate}. Come back with: libra run {command}")
        raise


@contextmanager
def progress_line(engine: sa.Engine, run_id: str, *, total_items: int | None) -> Iterator[None]:
    """Show items settled, items/s and time left while the context lasts (nothing unless on a terminal)."""
    if not err.is_terminal:
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
    with Progress(*columns, console=err, expand=True) as progress:
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
            return  # the caller that waits for the run meets the same error and reports it
        settled = status.counts.settled
        now = time.monotonic()
        first = first or (now, settled)
        passed_s, done = now - first[0], settled - first[1]
        total = status.expected or progress.tasks[0].total
        progress.update(
            task,
            completed=settled,
            total=total,
            count=f"{settled:,} of {total:,.0f}" if total else f"{settled:,}",
            rate=f"{done / passed_s:,.0f} items/s" if done and passed_s > _POLL_S else "",
        )
        if last_look:
            return
        stop.wait(_POLL_S)
