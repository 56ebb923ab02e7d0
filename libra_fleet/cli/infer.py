"""`libra infer`: a drop-in for the benchmark's `inference.py`, judged by the fleet in mode generate.

Rows go to `{rank}-of-{num}.jsonl` in the order of the data, each with all its fields and `critic`, as soon as
all before them are judged. Started again, it writes what is missing; of a run that was interrupted nothing is
judged twice. A row whose item died is not written, so that the next start tries it again.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final

import click
from click.core import ParameterSource

from infra.errors import DataError, RunError, UsageError
from infra.guard_catalogue import GUARDS
from infra.ledger import intake, reading
from infra.ledger.comparing import Settled, settled_of
from infra.process import deferred_interrupt
from infra.servers.services import Services
from libra_fleet.cli.context import connected, fleet_for
from libra_fleet.cli.options import GuardChoice, LocalFleetOptions, takes_fleet
from libra_fleet.cli.show import err, say
from libra_fleet.cli.watch import progress_line, wait_for_end
from producer.datasets.critic import Judgement, critic_fields, read_critic
from producer.datasets.examples import draw_examples
from producer.datasets.jsonl_log import OutFile
from producer.datasets.raw import RawRecord, raw_records
from producer.datasets.records import RowError
from producer.intake.submit import seal, submit
from schemas.guards import Family, Mode
from schemas.runs import RunSpec, RunState
from schemas.verdicts import Outcome

_BATCH_ROWS: Final = 256
_POLL_S: Final = 0.2
_BAD_ROWS_SHOWN: Final = 10
_HUB_ID: Final = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True)
class Slice:
    """The rows of one machine: from `start` up to `stop` of a data set, contiguous as the benchmark cuts them."""

    source: str
    start: int
    stop: int

    @classmethod
    def of(cls, source: str, rank: int, num: int) -> Slice:
        """The slice of machine `rank` of `num`.

        Raises:
            DataError: a row in it is no item, or has the id of another one.
        """
        rows = sum(1 for _ in raw_records(source))
        # The benchmark's own rounding, so that ranks of either program fit together.
        found = cls(source, int(rows / num * rank), int(rows / num * (rank + 1)))
        found._check()
        return found

    def records(self, *, without: set[str]) -> Iterator[RawRecord]:
        """Its rows in order, less those whose id is known."""
        for record in islice(raw_records(self.source), self.start, self.stop):
            if isinstance(record, RawRecord) and record.id not in without:
                yield record

    def _check(self) -> None:
        bad: list[str] = []
        first_at: dict[str, str] = {}
        for record in islice(raw_records(self.source), self.start, self.stop):
            problem = record.problem if not isinstance(record, RawRecord) else _problem(record, first_at)
            if problem:
                bad.append(f"  {record.where}: {problem}")
        if bad:
            more = [f"  … and {len(bad) - _BAD_ROWS_SHOWN:,} more"] if len(bad) > _BAD_ROWS_SHOWN else []
            raise DataError("\n".join([f"{len(bad):,} rows cannot be judged:", *bad[:_BAD_ROWS_SHOWN], *more]))


def _problem(record: RawRecord, first_at: dict[str, str]) -> str | None:
    try:
        record.item()
    except RowError as error:
        return str(error)
    known = first_at.setdefault(record.id, record.where)
    return None if known == record.where else f"duplicate id {record.id!r}, first at {known}"


@click.command()
@click.option("--base_model", required=True, help="A guard by name, a checkpoint folder, or a hub id.")
@click.option("--data_path", required=True, help="JSON, JSONL or Parquet file, or a folder of these.")
@click.option(
    "--batch_size",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    help="Bounds the prompts in a batch of a local worker if given; else batches are planned by tokens.",
)
@click.option("--seed", type=int, default=42, show_default=True, help="Draws the examples; decoding is greedy.")
@click.option("--out_path", type=click.Path(file_okay=False, path_type=Path), default="./outputs", show_default=True)
@click.option("--num_itera", type=click.IntRange(min=1), default=1, show_default=True, help="Judgements per row.")
@click.option(
    "--few_shot",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Worked examples in each prompt, drawn by the seed.",
)
@click.option("--few_shot_path", help="The data set that they are drawn from: rows with labels.")
@click.option("--is_instruct", type=click.IntRange(0, 1), default=1, show_default=True, help="Only 1 can be done.")
@click.option("--machine_rank", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--machine_num", type=click.IntRange(min=1), default=1, show_default=True)
@takes_fleet
def infer(
    *,
    base_model: str,
    data_path: str,
    batch_size: int,
    seed: int,
    out_path: Path,
    num_itera: int,
    few_shot: int,
    few_shot_path: str | None,
    is_instruct: int,
    machine_rank: int,
    machine_num: int,
    fleet: LocalFleetOptions,
) -> None:
    """Judge a data set into files with the `critic` field; options as of the benchmark's inference.py."""
    if not is_instruct:
        raise UsageError(
            "--is_instruct 0: outside the checkpoint's chat template a text could write its own verdict; leave it at 1"
        )
    if machine_rank >= machine_num:
        raise UsageError(f"--machine_rank {machine_rank} of {machine_num}: the first is 0, the last {machine_num - 1}")
    guard = guard_of(base_model)
    shots = _Shots.of(guard, few_shot, few_shot_path)
    rows = Slice.of(data_path, machine_rank, machine_num)
    name = f"{machine_rank}-of-{machine_num}"
    spec = RunSpec(
        guard=guard.name,
        checkpoint=guard.checkpoint,
        mode=Mode.GENERATE,
        source=f"{Path(data_path).resolve()} ({name}){shots.said if shots else ''}",
        repeat=num_itera,
        seed=seed,
        examples=draw_examples(shots.path, shots.count, seed=seed, judged=data_path) if shots else (),
    )
    given = click.get_current_context().get_parameter_source("batch_size") is not ParameterSource.DEFAULT
    options = ("--max-batch-items", str(batch_size)) if given and batch_size else ()
    _Inference(rows, spec, OutFile(out_path / f"{name}.jsonl"), out_path / f"{name}.run").carry_out(fleet, options)


@dataclass(frozen=True)
class _Shots:
    """How many worked examples are wanted, and where from."""

    count: int
    path: str

    @classmethod
    def of(cls, guard: GuardChoice, count: int, path: str | None) -> _Shots | None:
        """What the options ask for; None where it is no examples.

        Raises:
            UsageError: one option lacks the other, or the guard's format has no place for examples.
        """
        if bool(count) != (path is not None):
            raise UsageError("--few_shot N takes N examples from --few_shot_path FILE: give both, or neither")
        if path is None:
            return None
        known = GUARDS.get(guard.name)
        if known and known.family is not Family.LIBRA:
            raise UsageError(f"--few_shot: {guard.name} has no form for worked examples; only Libra Guard's format has")
        return cls(count, path)

    @property
    def said(self) -> str:
        """For the run's source."""
        return f", {self.count:,} examples from {Path(self.path).resolve()}"


def guard_of(base_model: str) -> GuardChoice:
    """The guard that a model's name, folder or hub id means; any other causal model is asked in Libra Guard's words.

    Raises:
        UsageError: it is none of these, or a guard that writes no text.
    """
    folder = Path(base_model).expanduser()
    known = GUARDS.get(base_model) or next((card for card in GUARDS.values() if card.hub_id == base_model), None)
    if known:
        if Mode.GENERATE not in known.modes:
            raise UsageError(f"--base_model {base_model}: {known.name} writes no text; use `libra bench run`")
        return GuardChoice(known.name)
    if not folder.is_dir() and not _HUB_ID.fullmatch(base_model):
        raise UsageError(f"--base_model {base_model!r}: no guard (`libra guards`), no folder and no hub id")
    checkpoint = str(folder.resolve()) if folder.is_dir() else base_model
    name = re.sub(r"[^a-z0-9.]+", "-", checkpoint.rpartition("/")[2].lower()).strip("-.")
    return GuardChoice(name or "model", checkpoint)


class _Inference:
    """One slice on its way into one file. `note` holds the id of the run under way."""

    def __init__(self, rows: Slice, spec: RunSpec, out: OutFile, note: Path) -> None:
        self._rows = rows
        self._spec = spec
        self._out = out
        self._note = note
        self._mended = 0
        self._missing = sum(1 for _ in rows.records(without=out.ids))
        if self._missing + len(out.ids) != rows.stop - rows.start:
            raise DataError(
                f"{out.path} holds rows that are not in this part of {rows.source}: name another --out_path"
            )

    def carry_out(self, choice: LocalFleetOptions, worker_options: tuple[str, ...]) -> None:
        """Judge and write what is missing.

        Raises:
            RunError: some rows could not be judged.
        """
        if self._out.torn_bytes:
            say(f"{self._out.path}: a torn last line was cut off")
        total = self._rows.stop - self._rows.start
        say(f"{self._missing:,} of {total:,} rows are to be judged; {self._out.path} holds the rest")
        if not self._missing:
            return
        with connected() as found:
            found.coordination  # noqa: B018 - a broker that cannot be reached is said before a run is opened
            found.engine  # noqa: B018 - likewise the ledger
            with fleet_for(found, self._spec, choice, worker_options=worker_options) as fleet_lives:
                unwritten = self._judge(found, fleet_lives)
        self._note.unlink(missing_ok=True)
        if self._mended:
            say(f"{self._mended:,} texts are no answer in the exact form, but the benchmark's script reads one in them")
        if unwritten:
            raise RunError(f"{unwritten:,} rows died and were not written; the same command tries them again")

    def _judge(self, found: Services, fleet_lives: Callable[[], None]) -> int:
        """Submit, then write what comes back; returns the number of rows that were not written."""
        try:
            with deferred_interrupt() as interrupted:

                def check() -> None:
                    interrupted()
                    fleet_lives()

                run_id = self._submitted(found, check)
                with progress_line(found.engine, run_id, err, total_items=self._missing * self._spec.repeat):
                    return self._write(found, run_id, check)
        except KeyboardInterrupt:
            say("\nstopped; the same command goes on from here")
            raise

    def _submitted(self, found: Services, check: Callable[[], None]) -> str:
        """The run that holds the missing rows: the one under way, if it is ours, else a new one."""
        known = reading.find_run(found.engine, self._note.read_text()) if self._note.is_file() else None
        if known and not known.state.ended and known.spec == self._spec:
            run_id, is_open = known.id, known.state is RunState.OPEN
            say(f"going on with run {run_id}")
        else:
            run_id, is_open = intake.new_run_id(), True
            self._note.write_text(run_id)
            intake.create_run(found.engine, self._spec, run_id=run_id)
        if is_open:
            records = self._rows.records(without=self._out.ids)
            submit(found, run_id, self._spec, (record.item() for record in records), check=check)
            seal(found, run_id)
        return run_id

    def _write(self, found: Services, run_id: str, check: Callable[[], None]) -> int:
        records = self._rows.records(without=self._out.ids)
        written = 0
        for batch in iter(lambda: list(islice(records, _BATCH_ROWS)), []):
            written += self._write_batch(found, run_id, batch, check)
        wait_for_end(found.engine, run_id, check=check)
        return self._missing - written

    def _write_batch(self, found: Services, run_id: str, batch: list[RawRecord], check: Callable[[], None]) -> int:
        """Write a batch's rows in order as they settle; returns how many were written."""
        written = 0
        while True:
            ended = reading.run_status(found.engine, run_id).state.ended
            settled = settled_of(found.engine, run_id, [record.id for record in batch])
            ready = batch if ended else list(_settled_head(batch, settled, self._spec.repeat))
            rows = [row for row in map(partial(_row, settled=settled), ready) if row is not None]
            if rows:
                self._out.append(rows)
            written += len(rows)
            self._mended += sum(_is_mended(record, settled) for record in ready)
            batch = batch[len(ready) :]
            if not batch:
                return written
            check()
            time.sleep(_POLL_S)


def _settled_head(batch: list[RawRecord], settled: dict[str, list[Settled]], repeat: int) -> Iterator[RawRecord]:
    for record in batch:
        if len(settled.get(record.id, ())) < repeat:
            return
        yield record


def _row(record: RawRecord, *, settled: dict[str, list[Settled]]) -> dict[str, object] | None:
    """The row with its judgement; None where one of its iterations died."""
    ends = settled.get(record.id, [])
    if not ends or any(end.outcome is Outcome.DEAD for end in ends):
        return None
    own_id = record.row.get("id")
    judged = critic_fields([Judgement(end.raw, end.label) for end in ends])
    return {**record.row, "id": record.id if own_id is None else own_id, **judged}


def _is_mended(record: RawRecord, settled: dict[str, list[Settled]]) -> bool:
    """Whether the benchmark's script finds a label where the guard's own reading found none."""
    return any(end.label is None and read_critic(end.raw) is not None for end in settled.get(record.id, ()))
