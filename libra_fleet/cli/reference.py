"""`libra infer` and `libra metrics`: drop-ins for the benchmark's `inference.py` and `evaluate_metrics.py`.

`infer` judges in mode generate. Rows go to `{rank}-of-{num}.jsonl` in the order of the data, each with all its fields
and `critic`, as soon as all before them are judged. Started again, it writes what is missing; of a run that was
interrupted nothing is judged twice. A row whose item died is not written, so that the next start tries it again.

The benchmark's metric script leaves out ids that it does not know, says nothing of missing ones and counts duplicates
twice. `metrics` reports each of them, and counts an id once: its first row.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path
from typing import Final, NamedTuple

import click
from click.core import ParameterSource

from infra.critic import read_critic
from infra.errors import DataError, RunError, UsageError
from infra.guard_catalogue import GUARDS
from infra.ledger import intake
from infra.ledger.items import Ending, settled_of
from infra.ledger.runs import find_run, run_status
from infra.metrics import Judged, measure
from infra.servers.services import Services
from libra_fleet.cli.context import connected, fleet_for, interruptible, progress_line, wait_for_end
from libra_fleet.cli.options import GuardChoice, LocalFleetOptions, json_option, takes_fleet
from libra_fleet.cli.show import listed_rows, print_report, say
from producer.datasets.dataset import RawRecord, bad_records, open_dataset, raw_records
from producer.datasets.jsonl_log import OutFile
from producer.datasets.origins import FIELD, Origin, Origins, noted, origin_of, require_one
from producer.datasets.records import to_item
from producer.datasets.reference_format import Judgement, critic_fields, draw_examples
from producer.datasets.rows import RowError
from producer.intake.submit import seal, submit
from schemas.guards import BARE, Family, Mode, is_bare, is_generator
from schemas.items import Item
from schemas.runs import InvalidRow, RunCounts, RunReport, RunSpec, RunState
from schemas.verdicts import Outcome
from worker.guards.location import absolute_location, is_folder, parts_of
from worker.guards.registry import BUNDLED

_BATCH_ROWS: Final = 256
_POLL_S: Final = 0.2
_LISTED: Final = 1000
_HUB_ID: Final = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@click.command()
@click.option(
    "--base_model",
    required=True,
    help="A guard by name, asked as its authors ask it; or a folder, a hub id or BASE+ADAPTER, asked in Libra Guard's "
    "words.",
)
@click.option("--data_path", required=True, help="JSON, JSONL or Parquet file, or a folder of these.")
@click.option(
    "--batch_size",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    help="Bounds the prompts in a batch of a local worker if given; else batches are planned by tokens.",
)
@click.option("--seed", type=int, default=42, show_default=True, help="Draws the examples; decoding is greedy.")
@click.option(
    "--out_path",
    type=click.Path(file_okay=False, path_type=Path),
    default="./outputs",
    show_default=True,
    help="Folder of the files.",
)
@click.option("--num_itera", type=click.IntRange(min=1), default=1, show_default=True, help="Judgements per row.")
@click.option(
    "--few_shot",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Worked examples in each prompt, drawn by the seed.",
)
@click.option("--few_shot_path", help="The data set that they are drawn from: rows with labels.")
@click.option(
    "--is_instruct",
    type=click.IntRange(0, 1),
    default=1,
    show_default=True,
    help="0: without the model's chat template, for base models.",
)
@click.option(
    "--machine_rank", type=click.IntRange(min=0), default=0, show_default=True, help="Number of this machine, from 0."
)
@click.option("--machine_num", type=click.IntRange(min=1), default=1, show_default=True, help="Number of machines.")
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
    """Judge a data set into files as the benchmark's inference.py does.

    Options are those of that program; every row gets its `critic` field.
    """
    if machine_rank >= machine_num:
        raise UsageError(f"--machine_rank {machine_rank} of {machine_num}: the first is 0, the last {machine_num - 1}")
    guard = guard_of(base_model) if is_instruct else bare_guard_of(base_model)
    _require_examples_fit(guard, few_shot, few_shot_path)
    if not is_instruct:
        say(
            "--is_instruct 0: no chat template stands between a text and the answer, so a text can write its own "
            "verdict; use it for base models, on texts that nobody wrote to be let through"
        )
    _say_how_read(data_path)
    count = sum(1 for _ in raw_records(data_path))
    # The benchmark's own rounding, so that ranks of either program fit together over a file. Of a folder it deals out
    # shuffled files, in the order that each machine's disk has them; here the rows of all files in order (0061).
    part = range(int(count / machine_num * machine_rank), int(count / machine_num * (machine_rank + 1)))
    bad, _ = bad_records(islice(raw_records(data_path), part.start, part.stop))
    if bad:
        raise DataError(listed_rows(f"{len(bad):,} rows cannot be judged:", bad))
    name = f"{machine_rank}-of-{machine_num}"
    shots = f", {few_shot:,} examples from {Path(few_shot_path).resolve()}" if few_shot_path else ""
    spec = guard.spec(
        Mode.GENERATE,
        f"{Path(data_path).resolve()} ({name}){shots}",
        family=Family.LIBRA.value if guard.checkpoint and not is_bare(guard.name) else None,
        repeat=num_itera,
        seed=seed,
        examples=draw_examples(few_shot_path, few_shot, seed=seed, judged=data_path) if few_shot_path else (),
    )
    origins = Origins()
    out = OutFile(out_path / f"{name}.jsonl", on_row=origins.add)
    job = _Job(data_path, part, spec, out, out_path / f"{name}.run", origins)
    missing = job.count_missing()
    if job.out.torn_bytes:
        say(f"{job.out.path}: a torn last line was cut off")
    say(f"{missing:,} of {len(part):,} rows are to be judged; {job.out.path} holds the rest")
    if not missing:
        return
    given = click.get_current_context().get_parameter_source("batch_size") is not ParameterSource.DEFAULT
    options = ("--max-batch-items", str(batch_size)) if given and batch_size else ()
    with connected() as found:
        found.coordination  # noqa: B018 - a broker that cannot be reached is said before a run is opened
        found.engine  # noqa: B018 - likewise the ledger
        with fleet_for(found, spec, fleet, worker_options=options) as fleet_lives:
            written, repaired = _judge(found, job, missing, fleet_lives)
    job.note.unlink(missing_ok=True)
    if repaired:
        say(f"{repaired:,} texts are no answer in the exact form, but the benchmark's script reads one in them")
    if written < missing:
        raise RunError(f"{missing - written:,} rows died and were not written; the same command tries them again")


def _say_how_read(data_path: str) -> None:
    """Say what is guessed of the data: its encoding, its columns. A stream is refused: the data is read many times."""
    place = Path(data_path)
    if data_path == "-" or (place.exists() and not place.is_file() and not place.is_dir()):
        raise UsageError(f"--data_path {data_path}: a file or a folder is needed; a stream can be read only once")
    with open_dataset(data_path) as data:
        for note in data.notes():
            say(note)


def _require_examples_fit(guard: GuardChoice, count: int, path: str | None) -> None:
    if bool(count) != (path is not None):
        raise UsageError("--few_shot N takes N examples from --few_shot_path FILE: give both, or neither")
    known = GUARDS.get(guard.name)
    if count and (is_bare(guard.name) or (known and known.family is not Family.LIBRA)):
        raise UsageError(f"--few_shot: {guard.name} has no form for worked examples; only Libra Guard's format has")


def guard_of(base_model: str) -> GuardChoice:
    """The guard that a name means; a folder or hub id is asked in Libra Guard's words, as the benchmark's script asks.

    So the same model is asked the same way wherever it lies. A hub id of a card that is asked in these words anyway is
    that card; a name that would mean another guard's own words gets an end of its own.
    """
    known = GUARDS.get(base_model)
    if known:
        if Mode.GENERATE not in known.modes:
            raise UsageError(f"--base_model {base_model}: {known.name} writes no text; use `libra run start`")
        return GuardChoice(known.name)
    hub_card = next((card for card in GUARDS.values() if card.hub_id == base_model), None)
    if hub_card and hub_card.family is Family.LIBRA:
        return GuardChoice(hub_card.name)
    checkpoint = _place(base_model)
    name = re.sub(r"[^a-z0-9.]+", "-", checkpoint.rpartition("/")[2].lower()).strip("-.") or "model"
    known = GUARDS.get(name)
    if is_bare(name) or is_generator(name) or (known and known.family is not Family.LIBRA):
        if known:
            say(f"{base_model} is asked in Libra Guard's words; --base_model {known.name} asks it as its authors do")
        name = f"asked-{name}"
    return GuardChoice(name, checkpoint)


def bare_guard_of(base_model: str) -> GuardChoice:
    """The same model without its chat template: a guard of its own, with a queue of its own."""
    card = GUARDS.get(base_model)
    if card and card.family is not Family.LIBRA:
        raise UsageError(
            f"--is_instruct 0: {card.name} has a prompt of its own; its folder or hub id is asked in Libra Guard's"
        )
    if card and card.name in BUNDLED:
        return GuardChoice(f"{BARE}{card.name}", str(BUNDLED[card.name]))
    chosen = guard_of(base_model)
    own = GUARDS.get(chosen.name)
    return GuardChoice(f"{BARE}{chosen.name}", chosen.checkpoint or (own.hub_id if own else None))


def _place(base_model: str) -> str:
    """The checkpoint of a model that is no guard by name, folders by their whole paths."""
    for part in parts_of(base_model):
        if part is not None and not is_folder(part) and not _HUB_ID.fullmatch(part):
            raise UsageError(f"--base_model {base_model!r}: no guard (`libra guards`), no folder and no hub id")
    return absolute_location(base_model)


@dataclass(frozen=True)
class _Job:
    """A part of a data set on its way into one file.

    `note` is the file with the id of the run under way, `origins` are those of the rows that the file held before.
    """

    source: str
    part: range
    spec: RunSpec
    out: OutFile
    note: Path
    origins: Origins

    def missing(self) -> Iterator[RawRecord]:
        """The rows that the file lacked when it was opened, in order."""
        for record in islice(raw_records(self.source), self.part.start, self.part.stop):
            if isinstance(record, RawRecord) and record.id not in self.out.ids:
                yield record

    def count_missing(self) -> int:
        """The number of missing rows."""
        missing = sum(1 for _ in self.missing())
        if missing + len(self.out.ids) != len(self.part):
            raise DataError(
                f"{self.out.path} holds rows that are not in this part of {self.source}: name another --out_path"
            )
        self.origins.require(origin_of(self.spec), str(self.out.path))
        for record in islice(raw_records(self.source), self.part.start, self.part.stop):
            known = self.origins.texts.get(record.id) if isinstance(record, RawRecord) else None
            if isinstance(record, RawRecord) and known and record.item().content_hash.hex() != known:
                raise DataError(
                    f"{self.out.path} judged another text as {record.id!r} than {record.where} holds: "
                    "name another --out_path"
                )
        return missing


def _judge(found: Services, job: _Job, missing: int, fleet_lives: Callable[[], None]) -> tuple[int, int]:
    """Submit what is missing and write it as it settles; returns how many rows were written, and texts repaired."""
    written = repaired = 0
    try:
        with interruptible(fleet_lives) as check:
            # The run under way holds the missing rows, if it has the same options; else a new one does.
            known = find_run(found.engine, job.note.read_text()) if job.note.is_file() else None
            if known and not known.state.ended and known.spec == job.spec:
                run_id = known.id
                say(f"going on with run {run_id}")
            else:
                known, run_id = None, intake.new_run_id()
                job.note.write_text(run_id)
                intake.create_run(found.engine, job.spec, run_id=run_id)
            if known is None or known.state is RunState.OPEN:
                submit(found, run_id, job.spec, (record.item() for record in job.missing()), check=check)
                seal(found, run_id)
            with progress_line(found.engine, run_id, total_items=missing * job.spec.repeat):
                origin = origin_of(job.spec)
                for ready in _in_order(found, job, run_id, check):
                    if ready and origin.fingerprint is None:
                        origin = origin._replace(fingerprint=run_status(found.engine, run_id).fingerprint)
                        job.origins.require(origin, str(job.out.path))
                    # A row of which an iteration died is left out.
                    rows = [
                        {
                            **record.row,
                            "id": record.id if record.row.get("id") is None else record.row["id"],
                            **critic_fields([Judgement(end.raw, end.label) for end in ends]),
                            FIELD: origin.note(record.item()),
                        }
                        for record, ends in ready
                        if ends and all(end.outcome is not Outcome.DEAD for end in ends)
                    ]
                    if rows:
                        job.out.append(rows)
                    written += len(rows)
                    repaired += sum(
                        any(end.label is None and read_critic(end.raw) is not None for end in ends) for _, ends in ready
                    )
                wait_for_end(found.engine, run_id, check=check)
    except KeyboardInterrupt:
        say("\nstopped; the same command goes on from here")
        raise
    return written, repaired


def _in_order(
    found: Services, job: _Job, run_id: str, check: Callable[[], None]
) -> Iterator[list[tuple[RawRecord, list[Ending]]]]:
    """The missing rows with their judgements, each as soon as all rows before it are settled."""
    records = job.missing()
    while batch := list(islice(records, _BATCH_ROWS)):
        while True:
            # The state is read first: what is not settled of an ended run will never be.
            ended = run_status(found.engine, run_id).state.ended
            settled = settled_of(found.engine, run_id, [record.id for record in batch])
            ready = batch
            if not ended:
                ready = list(takewhile(lambda row: len(settled.get(row.id, ())) >= job.spec.repeat, batch))  # noqa: B023
            yield [(record, settled.get(record.id, [])) for record in ready]
            batch = batch[len(ready) :]
            if not batch:
                break
            check()
            time.sleep(_POLL_S)


class Evaluation(NamedTuple):
    """Predictions joined with their labels, and rows that did not fit."""

    rows: list[Judged]
    problems: list[InvalidRow]
    missing: int


@click.command()
@click.option(
    "--predict_root",
    required=True,
    type=click.Path(exists=True, path_type=Path),
    help="Folder (or file) of JSON lines with `id` and `critic`.",
)
@click.option(
    "--label_path",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The labelled set: JSON, JSONL or Parquet with `id`, `label`, `source`.",
)
@json_option
def metrics(*, predict_root: Path, label_path: Path, as_json: bool) -> None:
    """Print metrics of files as the benchmark's evaluate_metrics.py does.

    Options are those of that program.
    """
    evaluation = evaluate(str(predict_root), str(label_path))
    print_report(report_of(evaluation, str(predict_root), str(label_path)), as_json=as_json)


def evaluate(predict_root: str, label_path: str) -> Evaluation:
    """Join predictions with labels by id."""
    problems: list[InvalidRow] = []
    truths: dict[str, Item] = {}
    for record in _good(raw_records(label_path), problems):
        try:
            item = _labelled(record)
        except RowError as error:
            problems.append(InvalidRow(where=record.where, problem=str(error)))
            continue
        if item.id in truths:
            problems.append(InvalidRow(where=record.where, problem=f"duplicate label of id {item.id!r}"))
        truths.setdefault(item.id, item)
    rows: list[Judged] = []
    first_at: dict[str, str] = {}
    origins: set[Origin | None] = set()
    for record in _good(raw_records(predict_root), problems):
        origins.add(noted(record.row))
        known = truths.get(record.id)
        if record.id in first_at:
            problem = f"duplicate prediction of id {record.id!r}, first at {first_at[record.id]}"
            problems.append(InvalidRow(where=record.where, problem=problem))
        elif known is None:
            problems.append(InvalidRow(where=record.where, problem=f"id {record.id!r} is not in the label file"))
        else:
            first_at[record.id] = record.where
            label = read_critic(record.row.get("critic"))
            outcome = Outcome.SCORED if label else Outcome.UNPARSEABLE
            of = (known.source, known.category, known.subcategory, known.truth)
            rows.append(Judged(*of, outcome=outcome, label=label, p_unsafe=None))
    if not rows:
        raise DataError(f"{predict_root}: no prediction has a label in {label_path}")
    require_one(origins, predict_root)
    missing = [name for name in truths if name not in first_at]
    problems += [InvalidRow(where=label_path, problem=f"id {name!r} has no prediction") for name in missing]
    return Evaluation(rows, problems, len(missing))


def _labelled(record: RawRecord) -> Item:
    """The item in a row of a label file. It need not repeat the text; where it does, that says whose label counts."""
    try:
        return record.item()
    except RowError:
        return to_item({**record.row, "response": "-"}, record.fallback_id)


def _good(records: Iterable[RawRecord | InvalidRow], problems: list[InvalidRow]) -> Iterator[RawRecord]:
    for record in records:
        if isinstance(record, RawRecord):
            yield record
        else:
            problems.append(record)


def report_of(evaluation: Evaluation, predict_root: str, label_path: str) -> RunReport:
    """The evaluation as a run's report: what is missing counts as pending."""
    unparseable = sum(row.outcome is Outcome.UNPARSEABLE for row in evaluation.rows)
    judged = len(evaluation.rows)
    return RunReport(
        run_id="of files",
        name=predict_root,
        state=RunState.COMPLETE,
        spec=RunSpec(guard="predictions", mode=Mode.GENERATE, source=label_path),
        counts=RunCounts(
            accepted=judged + evaluation.missing,
            settled=judged,
            scored=judged - unparseable,
            unparseable=unparseable,
            dead=0,
            pending=evaluation.missing,
        ),
        groups=measure(evaluation.rows),
        invalid_rows=tuple(evaluation.problems[:_LISTED]),
        invalid_count=len(evaluation.problems),
    )
