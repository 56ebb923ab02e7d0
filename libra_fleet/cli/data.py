"""`libra data`: training rows in stages, each a file of JSON lines in one folder; and the scrubbing of old user text.

Here are the commands and their runs of the fleet; what a stage makes of rows and answers is in `producer.curation`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

import click
from rich.table import Table

from infra.errors import RunError, UsageError
from infra.ledger import intake, retention
from infra.ledger.items import candidates
from infra.ledger.runs import find_run, run_status
from infra.servers.services import Services
from libra_fleet.cli.context import connected, fleet_for, interruptible, progress_line, wait_for_end
from libra_fleet.cli.options import (
    GuardChoice,
    LocalFleetOptions,
    age,
    guard_named,
    json_option,
    mode_for,
    stacked,
    takes_fleet,
    timestamp,
)
from libra_fleet.cli.show import out, print_json, say
from producer.curation import augment as augmentation
from producer.curation import grammar, labels, texts
from producer.curation.files import Placed, batches, carry_out, in_file, path_of, rows_of, status_of
from producer.curation.rows import Generator, Row, Texts, item_of
from producer.curation.runs import run_name, texts_of, verdicts_of
from producer.intake.submit import seal, submit
from schemas.guards import Mode, is_generator
from schemas.items import Item
from schemas.messages import Lane
from schemas.runs import RunState

_ANNOTATED: Final = {"responses": ("annotated", "dropped"), "selected": ("selected-annotated", "selected-dropped")}
"""The files of agreement and of the rest, by the stage that is annotated."""


def _generators(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> list[GuardChoice]:
    found = [guard_named(value) for value in values]
    if bad := next((choice.name for choice in found if not is_generator(choice.name)), None):
        raise click.BadParameter(f"{bad} is a guard; a generator is generator=CHECKPOINT or generator-NAME=CHECKPOINT")
    if len({choice.name for choice in found}) < len(found):
        raise click.BadParameter("give each generator a name of its own: generator-a=…, generator-b=…")
    return found


def _judges(_: click.Context, __: click.Parameter, value: str) -> tuple[GuardChoice, GuardChoice]:
    found = [guard_named(name) for name in value.split(",")]
    if len(found) != 2 or found[0].name == found[1].name:
        raise click.BadParameter("two different guards, with a comma between")
    return found[0], found[1]


_folder: Final = click.argument("folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
_seed: Final = click.option("--seed", type=int, default=1, show_default=True, help="Decides every draw.")
_origin: Final = click.option("--origin", help="Origin of the texts, where their source does not say it.")
_licence: Final = click.option("--licence", help="Licence of the rows, likewise.")


def _takes_generators(metavar: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command its generators, the licence of their texts, the server and the fleet that run them."""
    return lambda command: stacked(
        command,
        click.option(
            *("--generator", "--writer", "generators"),
            metavar=metavar,
            callback=_generators,
            multiple=True,
            help="A generative model; --writer is the older name.",
        ),
        click.option(
            "--licence",
            default="not stated",
            show_default=True,
            help="Licence of a generator's texts, for the provenance.",
        ),
        click.option(
            "--base-url",
            help="The generator runs on this OpenAI-compatible server (such as http://gpu1:8000/v1), not here.",
        ),
        takes_fleet,
    )


@click.command()
@json_option
def elements(*, as_json: bool) -> None:
    """Show the parts of queries: phrases, task types, places and events.

    Phrases are counted per sub-category.
    """
    parts = grammar.elements()
    rows = [
        {
            "scenario": topic.scenario_zh,
            "sub_category": topic.kind.code,
            "harmful": len(topic.behaviours),
            "harmless": len(topic.benign),
            "words": len(topic.words),
        }
        for topic in grammar.topics()
    ]
    if as_json:
        sizes = {"task_types": list(parts.task_types), "places": list(parts.places), "events": list(parts.events)}
        print_json({"sub_categories": rows, **sizes})
        return
    table = Table("scenario", "sub-category", "harmful aims", "harmless aims", "words", box=None)
    for row in rows:
        table.add_row(*map(str, row.values()))
    out.print(table)
    out.print(f"{len(parts.task_types)} task types, {len(parts.places)} places, {len(parts.events)} events")


@click.command()
@_folder
@json_option
def status(*, folder: Path, as_json: bool) -> None:
    """Show each stage's rows, and how many by label, source, licence and reason.

    Rows are counted by generator as well.
    """
    stages = status_of(folder)
    if as_json:
        print_json([stage._asdict() for stage in stages])
        return
    if not stages:
        say(f"{folder}: no stage has begun; the first one is `libra data curate combine`")
    for stage in stages:
        out.print(f"[bold]{stage.name}[/] {stage.rows:,} rows{'' if stage.done else ', unfinished'}")
        for thing, counts in stage.counts.items():
            values = ", ".join(f"{value} {count:,}" for value, count in counts.items())
            out.print(f"  {thing}: {values}", highlight=False)


@click.command()
@_folder
@click.option("--count", type=click.IntRange(min=1), default=390, show_default=True, help="Combinations to draw.")
@_seed
def combine(*, folder: Path, count: int, seed: int) -> None:
    """Draw combinations of elements, sub-categories in turn."""
    options = {"count": count, "seed": seed}
    made = carry_out(folder, "combinations", options, lambda: in_file("combinations", texts.combinations(count, seed)))
    _say_done(folder, ["combinations"], made=made)


@click.command()
@_folder
@click.option("--per-combination", type=click.IntRange(min=1), default=10, show_default=True, help="Of each intent.")
@_takes_generators("generator=CHECKPOINT")
def queries(*, folder: Path, per_combination: int, **chosen: Any) -> None:
    """Write harmful queries, and as many harmless ones with the same words.

    By a generative model over the fleet if one is given, else by the built-in grammar.
    """
    if len(chosen["generators"]) > 1:
        raise UsageError("one --generator writes the queries; several answer them in `libra data curate responses`")
    source = partial(rows_of, folder, "combinations")

    def make(generators: dict[Generator, Texts]) -> Iterable[Row]:
        for generator, said in generators.items():
            return texts.generated_queries(source(), per_combination, generator, said)
        return texts.grammar_queries(source(), per_combination)

    requests = partial(texts.query_requests, per_combination=per_combination)
    options = {"per_combination": per_combination}
    _generate(folder, "queries", made_of="combinations", options=options, requests=requests, make=make, **chosen)


@click.command()
@_folder
@click.option(
    "--variants",
    type=click.IntRange(0, len(augmentation.WAYS)),
    default=1,
    show_default=True,
    help="Of each query.",
)
@click.option(
    "--similarity",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.8,
    show_default=True,
    help="A query nearer to an earlier one than this (Jaccard of 3-grams) is left out.",
)
@_seed
@_takes_generators("generator=CHECKPOINT")
def augment(*, folder: Path, variants: int, similarity: float, seed: int, **chosen: Any) -> None:
    """Reword and disguise queries, then leave out near-duplicates.

    A generator, if one is given, rewords each too.
    """
    if len(chosen["generators"]) > 1:
        raise UsageError("one --generator rewords the queries")

    def make(generators: dict[Generator, Texts]) -> Iterable[Row]:
        rows = rows_of(folder, "queries")
        for generator, said in generators.items():
            rows = augmentation.reworded(rows, generator, said)
        return augmentation.distinct(augmentation.augmented(rows, variants, seed), similarity)

    options = {"variants": variants, "similarity": similarity, "seed": seed}
    requests = augmentation.rewording_requests
    _generate(folder, "augmented", made_of="queries", options=options, requests=requests, make=make, **chosen)


@click.command()
@_folder
@_takes_generators("generator-NAME=CHECKPOINT")
def responses(*, folder: Path, **chosen: Any) -> None:
    """Answer every query, by each generator or in the grammar's manners.

    The manners are refusing, complying, neutral and hollow.
    """

    def make(generators: dict[Generator, Texts]) -> Iterable[Row]:
        rows = rows_of(folder, "augmented")
        return texts.generated_responses(rows, generators) if generators else texts.grammar_responses(rows)

    requests = texts.response_requests
    _generate(folder, "responses", made_of="augmented", options={}, requests=requests, make=make, **chosen)


@click.command()
@_folder
@click.option("--judges", metavar="A,B", callback=_judges, required=True, help="Two guards; NAME=CHECKPOINT as well.")
@click.option(
    "--of",
    "stage",
    type=click.Choice(list(_ANNOTATED)),
    default="responses",
    show_default=True,
    help="The stage whose rows are judged.",
)
@takes_fleet
def annotate(*, folder: Path, judges: tuple[GuardChoice, GuardChoice], stage: str, fleet: LocalFleetOptions) -> None:
    """Let two guards judge every answer, and keep the rows that both agree on.

    A row both agree on gets their label; any other is dropped.
    Each judge's verdicts are a run of the fleet. Of `selected`, only rows without a label are judged.
    """
    kept, dropped = _ANNOTATED[stage]

    def unlabelled() -> Iterator[Row]:
        return (row for row in rows_of(folder, stage) if not row["label"])

    def make() -> Iterator[Placed]:
        with connected() as found:
            runs = {judge.name: _ask(found, fleet, judge, lambda: map(item_of, unlabelled())) for judge in judges}
            for batch in batches(unlabelled()):
                ids = [row["id"] for row in batch]
                verdicts = {name: verdicts_of(found.engine, run_id, ids) for name, run_id in runs.items()}
                yield from labels.agreed(batch, verdicts, kept, dropped)

    made = carry_out(folder, kept, {"judges": judges}, make, made_of=stage, alongside=dropped)
    _say_done(folder, [kept, dropped], made=made)


@click.command()
@_folder
@click.argument("source", metavar="FILE", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_origin
@_licence
def real(*, folder: Path, source: Path, origin: str | None, licence: str | None) -> None:
    """Read a labelled data set as rows with their provenance and ids of their own.

    The set may be JADE, COLD or your own records.
    """
    options = {"origin": origin, "licence": licence}
    rows = labels.published_rows(str(source), origin, licence)
    made = carry_out(folder, "real", options, lambda: in_file("real", rows), made_of=source)
    _say_done(folder, ["real"], made=made)


@click.command()
@_folder
@click.option("--run", "run", required=True, metavar="RUN", help="An ended or live run of the ledger.")
@click.option("--since", metavar="WHEN", callback=timestamp, help="Only items settled since then: 7d, 12h, a date.")
@click.option(
    "--margin",
    type=click.FloatRange(0, 0.5),
    default=0.15,
    show_default=True,
    help="A p_unsafe so near to one half, or nearer, is a small margin.",
)
@_origin
@_licence
def select(
    *, folder: Path, run: str, since: datetime | None, margin: float, origin: str | None, licence: str | None
) -> None:
    """Take the hard examples of a run.

    A hard example has a small margin, guards that disagree, a human who overruled it, or a known label missed.
    Guards disagree where a child run (`libra run rejudge`) gave another label. A row has the human's label, else the
    known one, else none: `libra data curate annotate --of selected` asks two judges about those.
    """
    with connected() as found:
        known = run_status(found.engine, run)
        options = {"run": known.id, "margin": margin, "origin": origin, "licence": licence, "since": str(since)}
        rows = labels.hard_examples(
            candidates(found.engine, known.id, since),
            run_name=known.name,
            guard=known.spec.guard,
            margin=margin,
            origin=origin,
            licence=licence,
        )
        made = carry_out(folder, "selected", options, lambda: in_file("selected", rows))
    _say_done(folder, ["selected"], made=made)
    chosen = [row["provenance"]["stage"].removeprefix("select:").split("+") for row in rows_of(folder, "selected")]
    for reason, count in Counter(reason for reasons in chosen for reason in reasons).most_common():
        say(f"  {reason}: {count:,}")


def _generate(
    folder: Path,
    stage: str,
    *,
    made_of: str,
    options: Mapping[str, object],
    requests: Callable[[Iterable[Row]], Iterable[Item]],
    make: Callable[[dict[Generator, Texts]], Iterable[Row]],
    generators: list[GuardChoice],
    licence: str,
    base_url: str | None,
    fleet: LocalFleetOptions,
) -> None:
    """Carry out a stage whose rows the grammar or generators write; each generator's answers are a run of the fleet.

    `requests`: what generators are asked of the rows of `made_of`. `make`: the stage's rows, from their answers.
    """

    def rows() -> Iterator[Placed]:
        with ExitStack() as stack:
            answers: dict[Generator, Texts] = {}
            if generators:
                if base_url and fleet.local is False:
                    raise UsageError(
                        "--base-url is for a local worker; elsewhere: libra fleet worker --engine openai --base-url …"
                    )
                server = ("--engine", "openai", "--base-url", base_url) if base_url else ()
                found = stack.enter_context(connected())
                for choice in generators:
                    place = choice.checkpoint or choice.name
                    model = Path(place).name if Path(place).is_dir() else place
                    run_id = _ask(
                        found,
                        fleet,
                        choice,
                        lambda: requests(rows_of(folder, made_of)),
                        mode=Mode.GENERATE,
                        worker_options=server,
                    )
                    answers[Generator(choice.name, model, licence)] = texts_of(found.engine, run_id)
            yield from in_file(stage, make(answers))

    # Notes on disk say writers, the older word.
    recipe = {**options, "writers": generators, "licence": licence if generators else None}
    made = carry_out(folder, stage, recipe, rows, made_of=made_of)
    _say_done(folder, [stage], made=made)


def _ask(
    found: Services,
    fleet: LocalFleetOptions,
    guard: GuardChoice,
    items: Callable[[], Iterable[Item]],
    *,
    mode: Mode | None = None,
    worker_options: Sequence[str] = (),
) -> str:
    """The id of an ended run, new or known by its name, in which the guard answered all items; they are read twice."""
    spec = guard.spec(mode or mode_for(guard, None), "curate", lane=Lane.BULK)
    count, name = run_name(spec, items())
    known = find_run(found.engine, name)
    run_id = known.id if known else intake.new_run_id()
    needed = not (known and known.state.ended)
    with (
        fleet_for(found, spec, fleet, needed=needed, worker_options=worker_options) as fleet_lives,
        interruptible(fleet_lives) as check,
    ):
        if known is None:
            intake.create_run(found.engine, spec, run_id=run_id, name=name)
        say(f"{guard.name} {'answers' if needed else 'has answered'} {count:,} items: run {name}")
        with progress_line(found.engine, run_id, total_items=count):
            if known is None or known.state is RunState.OPEN:
                submit(found, run_id, spec, items(), check=check)
                seal(found, run_id)
            ended = wait_for_end(found.engine, run_id, check=check)
    if ended.cancelled:
        raise RunError(f"run {name} was cancelled; after `libra data purge --delete --yes` the same command asks again")
    return run_id


def _say_done(folder: Path, names: Sequence[str], *, made: bool) -> None:
    """Say how many rows each file of a finished stage has."""
    for name in names:
        by_label = Counter(row.get("label") or "none" for row in rows_of(folder, name))
        known = ", ".join(f"{label} {n:,}" for label, n in sorted(by_label.items()) if label != "none")
        split = f" ({known})" if known else ""
        say(f"{path_of(folder, name)}: {by_label.total():,} rows{split}{'' if made else ', finished before'}")


@click.command()
@click.option("--older-than", metavar="AGE", callback=age, required=True, help="Such as 30d, 12h or 90m.")
@click.option("--delete", is_flag=True, help="Delete ended runs altogether, verdicts and reports included.")
@click.option("--yes", is_flag=True, help="With --delete: do it.")
@json_option
def purge(*, older_than: timedelta, delete: bool, yes: bool, as_json: bool) -> None:
    """Scrub the texts of runs and live items that settled long enough ago.

    Ids, labels, metrics, content hashes and receipts stay, unless the runs are deleted; pending items are not touched.
    --delete without --yes only says which runs it would delete.
    """
    with connected() as found:
        if delete and not yes:
            _say_doomed(retention.old_runs(found.engine, older_than), as_json=as_json)
            return
        purged = retention.purge(found.engine, older_than, delete=delete)
    if as_json:
        print_json({"items": purged.items, "runs": purged.runs, "deleted": delete})
        return
    done = "deleted" if delete else "scrubbed"
    click.echo(f"{purged.items:,} items {done}; {purged.runs:,} ended runs were old enough")


def _say_doomed(names: Sequence[str], *, as_json: bool) -> None:
    """Say which runs a purge would delete."""
    if as_json:
        print_json({"deleted": False, "would_delete": list(names)})
        return
    for name in names:
        click.echo(name)
    say(f"{len(names):,} ended runs would be deleted, with verdicts and reports; --yes deletes them")
