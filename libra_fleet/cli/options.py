"""Options that commands share, and what becomes of them: a request for a run, a local fleet, where a report goes.

Everything wrong in an option is said here, before anything is read or started.
"""

from __future__ import annotations

import codecs
import difflib
import functools
import inspect
import itertools
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import click
from pydantic import ValidationError

from infra.guard_catalogue import GUARDS
from infra.metrics import AVERAGED
from producer.datasets.labels import label_word
from producer.datasets.records import TARGETS
from schemas.guards import DEFAULT_GUARD, Family, Mode, TextForm, is_bare, is_generator
from schemas.items import Label
from schemas.messages import Lane
from schemas.reading import AS_IT_IS, Ids, Reading
from schemas.runs import NextStage, RunSpec
from worker.guards.location import absolute_location, is_folder, parts_of

CASCADE: Final = "cascade:"
ACCEPT_BELOW: Final = 0.05
ACCEPT_ABOVE: Final = 0.95
_LONGEST_NAME: Final = 100
_HUB_ID: Final = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_AGE_UNITS: Final = {"d": "days", "h": "hours", "m": "minutes"}

R = TypeVar("R")
Command = Callable[..., R]


class GuardChoice(NamedTuple):
    """A guard by name, and the folder, hub id or BASE+ADAPTER that a local worker is to load for it."""

    name: str
    checkpoint: str | None = None

    def spec(self, mode: Mode, source: str, **others: Any) -> RunSpec:
        """The spec of a run of this guard; `others` are further fields of it."""
        return RunSpec(guard=self.name, checkpoint=self.checkpoint, mode=mode, source=source, **others)


class StageSpec(NamedTuple):
    """One stage of a cascade as written: its guard, and its thresholds where it names them."""

    guard: GuardChoice
    thresholds: tuple[float, float] | None = None


@dataclass(frozen=True)
class RunRequest:
    """A data set to judge: the run that is asked for."""

    source: str
    spec: RunSpec
    name: str | None


class LocalFleetOptions(NamedTuple):
    """Run a worker and a collector for the command (None: only with embedded servers), and on which devices."""

    local: bool | None
    devices: str


class QualityGate(NamedTuple):
    """An average that must not be lower."""

    metric: str
    floor: float


@dataclass(frozen=True)
class ReportOptions:
    """The places a report goes to, and what makes it a failure."""

    as_json: bool = False
    out: Path | None = None
    html: Path | None = None
    fail_under: tuple[QualityGate, ...] = ()


def guard_named(value: str) -> GuardChoice:
    """The guard that a NAME, a FOLDER, a HUB ID or NAME=CHECKPOINT stands for."""
    name, _equals, checkpoint = value.partition("=")
    if name and checkpoint:
        return GuardChoice(name, absolute_location(checkpoint))
    if (found := model_named(value)) is not None:
        return found
    hint = did_you_mean(name, GUARDS)
    raise click.BadParameter(
        f"no guard named {name!r}{hint} (`libra guards` lists them; NAME=FOLDER, a FOLDER or a hub id runs your own)"
    )


def model_named(value: str) -> GuardChoice | None:
    """The guard of a catalogue's name or hub id, or a folder, hub id or BASE+ADAPTER under its last name."""
    wanted = value.lower()
    card = GUARDS.get(value) or next((one for one in GUARDS.values() if (one.hub_id or "").lower() == wanted), None)
    if card is not None and value:
        return GuardChoice(card.name)
    parts = [part for part in parts_of(value) if part is not None]
    if not all(is_folder(part) or _HUB_ID.fullmatch(part) for part in parts):
        return None
    place = absolute_location(value)
    return GuardChoice(_name_of(place.rpartition("/")[2]), place)


def _name_of(text: str) -> str:
    """A guard's name made of a folder's or a hub id's; none of those that mean something else."""
    name = re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.") or "model"
    known = GUARDS.get(name)
    return f"{name}-checkpoint" if known and known.family in (Family.FAKE, Family.UNKNOWN) else name


def require_one_checkpoint(guard: str, checkpoint: str | None) -> None:
    """See that a guard's checkpoint is named in one place."""
    if checkpoint and "=" in guard:
        raise click.UsageError(f"{guard} names a checkpoint already: it goes with no --checkpoint")


def mode_for(guard: GuardChoice, mode: str | None, family: str | None = None) -> Mode:
    """The mode asked for, or the guard's usual one; one that it does not have would only make dead items."""
    card = GUARDS.get(guard.name)
    if is_bare(guard.name) or is_generator(guard.name):
        if is_bare(guard.name) and Mode(mode or Mode.GENERATE) is not Mode.GENERATE:
            raise click.UsageError(f"{guard.name} has no mode {mode}; without a chat template it has generate alone")
        return Mode(mode or (Mode.GENERATE if is_bare(guard.name) else Mode.SCORE))
    if card and not card.modes:
        raise click.UsageError(f"{card.name} cannot be run ({card.status.value}): {card.note}")
    if card and family is None:
        modes: tuple[Mode, ...] = card.modes
    elif guard.checkpoint or family:
        from worker.guards.family import words_of  # noqa: PLC0415 - only where a checkpoint has no card

        modes = words_of(guard.checkpoint or guard.name, family).modes
    else:
        modes = (Mode.SCORE,)
    if mode is None:
        return modes[0]
    is_seen = card or family or (guard.checkpoint and Path(guard.checkpoint).is_dir())
    if is_seen and Mode(mode) not in modes:
        raise click.UsageError(f"{guard.name} has no mode {mode}; it has {', '.join(m.value for m in modes)}")
    return Mode(mode)


def scoring_mode(guard: GuardChoice) -> Mode:
    """The first of a guard's modes that gives a score: without one a stage can accept nothing."""
    card = GUARDS.get(guard.name)
    if card is None and not is_bare(guard.name):
        return Mode.SCORE
    mode = next((mode for mode in card.modes if mode is not Mode.GENERATE), None) if card else None
    if mode is None:
        raise click.UsageError(f"{guard.name} gives no score: it can only be a cascade's last stage")
    return mode


def absolute(source: str) -> str:
    """A path that still holds when the run is resumed in another folder; anything else stays as it is."""
    return str(Path(source).resolve()) if Path(source).exists() else source


def age(_: click.Context, __: click.Parameter, value: str) -> timedelta:
    """Read an age such as 30d, 12h or 90m (a click callback)."""
    found = _age(value)
    if found is None:
        raise click.BadParameter(f"{value!r}: expected a number of days, hours or minutes, such as 30d, 12h, 90m")
    return found


def timestamp(_: click.Context, __: click.Parameter, value: str | None) -> datetime | None:
    """Read a timestamp, as an age or as a date and time, in UTC where no zone is named (a click callback)."""
    if value is None:
        return None
    ago = _age(value)
    try:
        if ago is not None:
            return datetime.now(UTC) - ago
        at = datetime.fromisoformat(value)
    except (ValueError, OverflowError) as error:
        raise click.BadParameter(
            f"{value!r}: expected an age such as 30d, 12h, 90m, or a time such as 2026-11-24 or 2026-11-24T18:00"
        ) from error
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _age(value: str) -> timedelta | None:
    match = re.fullmatch(r"(\d{1,6})([dhm])", value)
    return timedelta(**{_AGE_UNITS[match[2]]: int(match[1])}) if match else None


def parse_stages(value: str) -> list[StageSpec]:
    """The stages of a cascade as written: `cascade:small@0.02:0.98>large=CHECKPOINT`."""
    written = []
    for text in value.removeprefix(CASCADE).split(">"):
        head, equals, checkpoint = text.strip().partition("=")
        name, at, thresholds = head.partition("@")
        guard = guard_named(f"{name}{equals}{checkpoint}")
        try:
            below, above = map(float, thresholds.split(":")) if at else (0.0, 0.0)
        except ValueError:
            problem = f"{text.strip()!r}: expected NAME@BELOW:ABOVE, such as libra-tiny@0.02:0.98"
            raise click.BadParameter(problem) from None
        written.append(StageSpec(guard, (below, above) if at else None))
    if len(written) < 2:
        raise click.BadParameter(f"{value!r}: a cascade has two stages or more, such as cascade:small>large")
    names = [stage.guard.name for stage in written]
    if len(set(names)) < len(names):
        raise click.BadParameter(f"{value!r}: each stage needs a guard of its own")
    if written[-1].thresholds is not None:
        raise click.BadParameter(f"{value!r}: the last stage settles everything: it takes no thresholds")
    return written


def next_stages(written: list[StageSpec], default: tuple[float, float]) -> tuple[NextStage, ...]:
    """The stages after the first; `default` are the thresholds of stages that name none."""
    stages = []
    for before, after in itertools.pairwise(written):
        below, above = before.thresholds or default
        try:
            stages.append(
                NextStage(
                    guard=after.guard.name,
                    checkpoint=after.guard.checkpoint,
                    mode=mode_for(after.guard, None) if after is written[-1] else scoring_mode(after.guard),
                    sure_below=below,
                    sure_above=above,
                )
            )
        except ValidationError as error:
            reason = error.errors(include_input=False, include_url=False)[0]["msg"].removeprefix("Value error, ")
            raise click.UsageError(f"{before.guard.name}@{below:g}:{above:g}: {reason}") from error
    return tuple(stages)


def _gate(value: str) -> QualityGate:
    metric, _equals, number = value.partition("=")
    try:
        floor = float(number)
    except ValueError:
        floor = math.nan
    if not math.isfinite(floor):
        raise click.BadParameter(f"{value!r}: expected METRIC=VALUE, such as accuracy=0.85")
    if not -1 <= floor <= 1:
        raise click.BadParameter(f"{value!r}: a metric is at most 1; did you mean {metric}={floor / 100:g}?")
    if metric not in AVERAGED:
        raise click.BadParameter(f"no average named {metric!r}{did_you_mean(metric, AVERAGED)}")
    return QualityGate(metric, floor)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The known words that a word may be a slip for, as the end of a sentence; empty if there is none."""
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.4)
    return f"; did you mean {', '.join(close)}?" if close else ""


def _shard(_: click.Context, __: click.Parameter, value: str) -> tuple[int, int]:
    index, _slash, count = value.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise click.BadParameter(f"{value!r}: expected I/N with 0 ≤ I < N, such as 0/4")
    return int(index), int(count)


def _name(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    if value is None or (0 < len(value) <= _LONGEST_NAME and value.isprintable() and value == value.strip()):
        return value
    raise click.BadParameter(f"1 to {_LONGEST_NAME} printable characters, no space at either end")


def stacked(command: Command[R], *options: Callable[[Command[R]], Command[R]]) -> Command[R]:
    """The command with these options, in this order on its help page."""
    return functools.reduce(lambda stacked, option: option(stacked), reversed(options), command)


def gathered(
    argument: str, make: Callable[..., object], *options: Callable[[Command[Any]], Command[Any]]
) -> Callable[[Command[Any]], Command[Any]]:
    """Give a command these options as one argument: what `make` makes of their values, which it takes by name."""

    def decorate(command: Command[Any]) -> Command[Any]:
        @functools.wraps(command)
        def with_options(**given: Any) -> Any:
            values = {name: given.pop(name) for name in inspect.signature(make).parameters}
            return command(**{argument: make(**values)}, **given)

        return stacked(with_options, *options)

    return decorate


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")
limit_option = click.option(
    "--limit", type=click.IntRange(min=1), default=50, show_default=True, help="List at most this many."
)
tenant_option = click.option("--tenant", help="Only this tenant's.")
html_option = click.option(
    "--html",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write a page to this file: one file, to be opened in any browser.",
)
guard_option = click.option(
    "--guard",
    metavar="NAME[=CHECKPOINT]",
    callback=lambda _, __, value: guard_named(value),
    default=DEFAULT_GUARD,
    show_default=True,
    help="Guard by name, folder or hub id; of NAME=CHECKPOINT (or BASE+ADAPTER) a local worker loads that.",
)
family_option = click.option(
    "--family",
    help="Ask a checkpoint in the words of this family or guard, such as qwen3guard. Default: what it shows.",
)
mode_option = click.option(
    "--mode",
    type=click.Choice([mode.value for mode in Mode]),
    help="How the verdict is obtained. Default: the first of the guard's modes (`libra guards`).",
)
dtype_option = click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
    help="Type of the weights.",
)
analysis_option = click.option(
    "--analysis", is_flag=True, help="In mode generate, let the model write on after its verdict."
)
form_option = click.option(
    "--form",
    type=click.Choice([form.value for form in TextForm]),
    callback=lambda _, __, value: TextForm(value),
    default=TextForm.AS_IS.value,
    show_default=True,
    help="Ask about texts as they are, in their normal form (without what hides a word), or take the worse of both.",
)
sample_limit_option = click.option("--limit", type=click.IntRange(min=1), help="Judge at most this many rows.")
seed_option = click.option("--seed", type=int, help="With --limit: a random sample by this seed, not the first rows.")
name_option = click.option("--name", callback=_name, help="A name of your own for the run.")
no_text_option = click.option("--no-text", is_flag=True, help="Leave the items' texts out of the page.")

dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Only read the data: show the first three items as they would be judged."
)


def cache_option(*, default: bool) -> Callable[[Command[R]], Command[R]]:
    """The option --cache/--no-cache with this default."""
    return click.option(
        "--cache/--no-cache",
        default=default,
        show_default=True,
        help="Take what a device answered before to the very same prompts.",
    )


takes_fleet = gathered(
    "fleet",
    LocalFleetOptions,
    click.option(
        "--local/--no-local",
        default=None,
        help="Run a worker and a collector for this command. Default: only with embedded servers.",
    ),
    click.option("--devices", default="all", show_default=True, help="Devices of a local worker: all, cpu, 0,1."),
)
takes_report_options = gathered(
    "report_options",
    ReportOptions,
    click.option(
        "--out", type=click.Path(dir_okay=False, path_type=Path), help="Also write the report as JSON to this file."
    ),
    html_option,
    click.option(
        "--fail-under",
        metavar="METRIC=VALUE",
        callback=lambda _, __, values: tuple(map(_gate, values)),
        multiple=True,
        help="Exit 7 if this average is lower (for CI); repeatable.",
    ),
    json_option,
)
price_option = gathered(
    "price_per_device_hour",
    lambda price_per_device_hour, old_price: old_price if price_per_device_hour is None else price_per_device_hour,
    click.option(
        "--price-per-device-hour",
        type=click.FloatRange(min=0),
        metavar="PRICE",
        help="What an hour of a device costs, in your currency. Default: LIBRA_PRICE_PER_DEVICE_HOUR.",
    ),
    click.option("--price-per-gpu-hour", "old_price", type=click.FloatRange(min=0), hidden=True),
)


def run_request(
    *,
    source: str,
    guard: list[StageSpec],
    mode: str | None,
    accept_below: float,
    accept_above: float,
    name: str | None,
    shard: tuple[int, int],
    limit: int | None,
    seed: int | None,
    repeat: int,
    skip_invalid: bool,
    cache: bool,
    form: TextForm,
    analysis: bool,
    family: str | None,
    reading: Reading | None,
) -> RunRequest:
    """The run that the options of `libra run start` ask for."""
    require_sample(limit, seed)
    if cache and repeat > 1:
        raise click.UsageError("--repeat judges every item again: it goes with no --cache")
    first = guard[0].guard
    is_cascade = len(guard) > 1
    if is_cascade and (mode is not None or analysis or repeat > 1):
        raise click.UsageError("a cascade's stages choose their modes: it goes with no --mode, --analysis, --repeat")
    if is_cascade and family is not None:
        raise click.UsageError("--family is of one guard: it goes with no cascade")
    chosen = scoring_mode(first) if is_cascade else mode_for(first, mode, family)
    spec = first.spec(
        chosen,
        absolute(source) if source else source,
        lane=Lane.BULK,
        shard_index=shard[0],
        shard_count=shard[1],
        limit=limit,
        repeat=repeat,
        seed=seed,
        skip_invalid=skip_invalid,
        cache=cache,
        form=form,
        verdict_only=chosen is Mode.GENERATE and not analysis,
        stages=next_stages(guard, (accept_below, accept_above)),
        family=family,
        reading=reading,
    )
    return RunRequest(source, spec, name)


def require_sample(limit: int | None, seed: int | None) -> None:
    """See that a seed has a sample to choose."""
    if seed is not None and limit is None:
        raise click.UsageError("--seed chooses the sample that --limit takes: give both, or neither")


def reading_of(
    *, field: tuple[str, ...], label: tuple[str, ...], ids: str, split: str | None, encoding: str | None
) -> Reading | None:
    """What the options say of how a data set is to be read; None where they say nothing."""
    fields: dict[str, str] = {}
    for pair in field:
        name, equals, column = pair.partition("=")
        if not equals or name not in TARGETS:
            hint = did_you_mean(name, TARGETS) or f"; there are {', '.join(TARGETS)}"
            raise click.BadParameter(f"--field {pair}: expected NAME=COLUMN, such as response=prompt{hint}")
        if fields.setdefault(TARGETS[name], column) != column:
            raise click.BadParameter(f"--field {pair}: {name} is read from {fields[TARGETS[name]]!r} already")
    labels: dict[str, Label] = {}
    for pair in label:
        name, equals, words = pair.partition("=")
        if not equals or name not in set(Label) or not words:
            raise click.BadParameter(f"--label {pair}: expected unsafe=WORD,WORD or safe=WORD; * is every other word")
        for word in (label_word(written) or "" for written in words.split(",")):
            if labels.setdefault(word, Label(name)) != name:
                raise click.BadParameter(f"--label {pair}: {word} means {labels[word]} already")
    reading = Reading(fields=fields, labels=labels, ids=Ids(ids), split=split, encoding=_codec(encoding))
    return None if reading == AS_IT_IS else reading


def _codec(name: str | None) -> str | None:
    if name is None:
        return None
    try:
        bytes(4).decode(name, "surrogateescape")  # codecs of other things than text have a name as well
        return codecs.lookup(name).name
    except (LookupError, UnicodeError):
        raise click.BadParameter(f"--encoding {name}: not known; such as utf-8, gb18030, big5, utf-16") from None


takes_reading = gathered(
    "reading",
    reading_of,
    click.option(
        "--field",
        metavar="NAME=COLUMN",
        multiple=True,
        help="Read an item's field from this column, such as response=prompt or label=is_harmful; label= reads none. "
        "Repeatable (docs/data-formats.md).",
    ),
    click.option(
        "--label",
        metavar="unsafe=WORDS",
        multiple=True,
        help="What the words of the label mean, such as unsafe=1,harmful; * is every other word. Repeatable.",
    ),
    click.option(
        "--ids",
        type=click.Choice([choice.value for choice in Ids]),
        default=Ids.KEEP.value,
        show_default=True,
        help="Ids: keep the rows' own, number the rows, or hash the texts, so that the same text is judged once.",
    ),
    click.option("--split", metavar="NAME", help="The part of the data set, such as test; the sheet of a workbook."),
    click.option("--encoding", metavar="NAME", help="Encoding of the files, such as gb18030. Default: by detection."),
)

takes_request = gathered(
    "request",
    run_request,
    click.argument("source"),
    click.option(
        "--guard",
        metavar="NAME[=CHECKPOINT]",
        callback=lambda _, __, value: (
            parse_stages(value) if value.startswith(CASCADE) else [StageSpec(guard_named(value))]
        ),
        default=DEFAULT_GUARD,
        show_default=True,
        help="Guard by name, folder or hub id; of NAME=CHECKPOINT (or BASE+ADAPTER) a local worker loads that. "
        "'cascade:SMALL>LARGE': items that SMALL does not settle escalate to LARGE; SMALL@0.02:0.98 names its "
        "thresholds (`libra run choose-thresholds`).",
    ),
    click.option(
        "--sure-below",
        "accept_below",
        type=click.FloatRange(0, 1),
        default=ACCEPT_BELOW,
        show_default=True,
        help="Cascade: a stage without thresholds of its own settles items that score this or less.",
    ),
    click.option(
        "--sure-above",
        "accept_above",
        type=click.FloatRange(0, 1),
        default=ACCEPT_ABOVE,
        show_default=True,
        help="Cascade: a stage without thresholds of its own settles items that score this or more.",
    ),
    mode_option,
    family_option,
    click.option(
        "--name", callback=_name, help="A name of your own; given again, the same command goes on with the run."
    ),
    click.option(
        "--shard",
        metavar="I/N",
        callback=_shard,
        default="0/1",
        help="Only every N-th row, beginning with row I (the first is 0).",
    ),
    sample_limit_option,
    seed_option,
    click.option("--repeat", type=click.IntRange(min=1), default=1, help="Judge every item this many times."),
    click.option("--skip-invalid", is_flag=True, help="List bad rows in the report instead of refusing the data."),
    cache_option(default=False),
    form_option,
    analysis_option,
    takes_reading,
)
