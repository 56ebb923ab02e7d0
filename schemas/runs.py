"""Runs: one guard over one set of items, its life, and the report it ends with."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from pydantic import Field, model_validator

from schemas.base import ADDED, Frozen, Shared
from schemas.guards import Mode, TextForm
from schemas.items import Example, ItemId
from schemas.messages import ChunkItem, JudgeChunk, Lane, version_of
from schemas.reading import Reading

RUN_ID: Final = "r(?:m[0-9]{4})?[0-9a-f]{10}"
"""A run's id as a regular expression: its month, which older ids lack, and ten random digits."""


class RunState(StrEnum):
    """open (accepting) → sealed (expected count fixed) → finalizing → complete | cancelled."""

    OPEN = "open"
    SEALED = "sealed"
    FINALIZING = "finalizing"
    COMPLETE = "complete"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """No further change comes."""
        return self in (RunState.COMPLETE, RunState.CANCELLED)


class NextStage(Frozen):
    """The stage of a cascade after another: its guard, and which scores of the other settle an item without it.

    An item is settled where the other guard scored it with `p_unsafe` at most `sure_below` or at least `sure_above`.
    Everything else goes on: what lies between, what has no score, what is unparseable or dead. -1 and 2: never.
    """

    guard: str
    checkpoint: str | None = None
    mode: Mode = Mode.SCORE
    sure_below: float = Field(ge=-1, le=2)
    sure_above: float = Field(ge=-1, le=2)

    @model_validator(mode="after")
    def _in_order(self) -> NextStage:
        if self.sure_below >= self.sure_above:
            raise ValueError(f"sure below {self.sure_below:g} and above {self.sure_above:g}: nothing lies between")
        return self


class RunSpec(Shared):
    """A user's request for a run. `source` is the origin of the items, as given on the command line.

    `checkpoint` is what a worker started for this run loads in place of the guard's own (folder or hub id).
    `cache`: what a device answered before may be taken again; never where every item is judged several times.
    `verdict_only`: a model may stop writing once its verdict is known.
    `examples` are shown to the guard before each item, in this order.
    `form`: the form of the texts that the guard is asked about.
    `parent` is the id of the run whose items a child run judges again.
    `tenant` is whose run it is, if it came through the gateway or the live client.
    `stages` of a cascade follow on this run, each as a child run of the one before.
    `family` names the words in which a local worker asks the checkpoint, where they are not those that it shows.
    `reading` is the user's word on the source's columns, labels, ids, split and encoding, if there was one.
    """

    guard: str
    checkpoint: str | None = None
    mode: Mode = Mode.SCORE
    lane: Lane = Lane.BULK
    source: str
    shard_index: int = Field(default=0, ge=0)
    shard_count: int = Field(default=1, ge=1)
    limit: int | None = Field(default=None, ge=1)
    repeat: int = Field(default=1, ge=1)
    seed: int | None = None
    skip_invalid: bool = False
    cache: bool = Field(default=False, **ADDED)
    verdict_only: bool = Field(default=False, **ADDED)
    examples: tuple[Example, ...] = Field(default=(), **ADDED)
    form: TextForm = Field(default=TextForm.AS_IS, exclude_if=lambda form: form is TextForm.AS_IS)
    parent: str | None = Field(default=None, **ADDED)
    tenant: str | None = Field(default=None, **ADDED)
    stages: tuple[NextStage, ...] = Field(default=(), **ADDED)
    family: str | None = Field(default=None, **ADDED)
    reading: Reading | None = Field(default=None, **ADDED)

    @property
    def uses_cache(self) -> bool:
        """True if its chunks may be answered from the cache: a repeated judgement that is a copy would say nothing."""
        return self.cache and self.repeat == 1

    def next_stage(self, run_id: str) -> RunSpec:
        """Return the request for the child run of the first of `stages`; `run_id` is this run's own."""
        stage = self.stages[0]
        return RunSpec(
            guard=stage.guard,
            checkpoint=stage.checkpoint,
            mode=stage.mode,
            lane=self.lane,
            source=f"run:{run_id}",
            cache=self.cache,
            form=self.form,
            verdict_only=stage.mode is Mode.GENERATE,
            parent=run_id,
            stages=self.stages[1:],
        )

    def chunk(
        self,
        run_id: str,
        chunk_no: int,
        items: tuple[ChunkItem, ...],
        *,
        iteration: int,
        enqueued_at: float,
        nonce: str = "",
        ordinal: int = 0,
        attempt: int = 1,
        fingerprint: str | None = None,
    ) -> JudgeChunk:
        """A chunk of this run as it travels: to be judged as the run says, the first time and ever after.

        `fingerprint` is the run's own, once it has one; live traffic keeps none.
        """
        return JudgeChunk(
            version=version_of(items, self.examples, self.form),
            run_id=run_id,
            chunk_no=chunk_no,
            iteration=iteration,
            attempt=attempt,
            guard=self.guard,
            mode=self.mode,
            lane=self.lane,
            enqueued_at=enqueued_at,
            items=items,
            cache=self.uses_cache,
            verdict_only=self.verdict_only,
            examples=self.examples,
            form=self.form,
            nonce=nonce,
            ordinal=ordinal,
            pin=fingerprint or "" if self.lane is Lane.BULK else "",
        )


class InvalidRow(Frozen):
    """A row that was skipped on request (`--skip-invalid`)."""

    where: str
    problem: str


class RunCounts(Frozen):
    """The ledger's counters. At every commit: accepted * repeat = settled + pending."""

    accepted: int = Field(ge=0)
    settled: int = Field(ge=0)
    scored: int = Field(ge=0)
    unparseable: int = Field(ge=0)
    dead: int = Field(ge=0)
    pending: int = Field(ge=0)


class Interval(Frozen):
    """A two-sided confidence interval."""

    low: float
    high: float
    level: float = 0.95


class Metric(Frozen):
    """A number with the count behind it. An undefined metric has no value but a reason, never 0."""

    name: str
    n: int
    value: float | None = None
    interval: Interval | None = None
    undefined: str | None = None


class MetricGroup(Frozen):
    """Metrics over one slice of a run: a source, a scenario, a sub-category, or everything.

    `merged`: how many groups are counted together in this one, since only the largest of a kind are listed; else 0.
    """

    kind: str
    name: str
    metrics: tuple[Metric, ...]
    merged: int = Field(default=0, ge=0, **ADDED)

    def metric(self, name: str) -> Metric | None:
        """A metric by its name, or None where it is not reported."""
        return next((metric for metric in self.metrics if metric.name == name), None)

    def value(self, name: str) -> float | None:
        """A metric's value, or None where it is undefined or not reported."""
        metric = self.metric(name)
        return metric.value if metric else None


class Throughput(Frozen):
    """The speed of a run, by the ledger's clock."""

    seconds: float
    items_per_s: float | None
    queue_p50_s: float | None = None
    queue_p95_s: float | None = None
    device_p50_s: float | None = None
    device_p95_s: float | None = None


class Cost(Shared):
    """The cost of judgements: device seconds and tokens, as measured by workers.

    `measured` of the `verdicts` come from workers that measure; seconds and tokens are theirs. What a cache answered
    is among them and cost nothing; discarded judgements are not in the sum. `devices` are the hardware's own names.
    """

    verdicts: int = Field(default=0, ge=0)
    measured: int = Field(default=0, ge=0)
    device_s: float = Field(default=0.0, ge=0)
    prompt_tokens: int = Field(default=0, ge=0)
    new_tokens: int = Field(default=0, ge=0)
    devices: tuple[str, ...] = ()

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            verdicts=self.verdicts + other.verdicts,
            measured=self.measured + other.measured,
            device_s=self.device_s + other.device_s,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            new_tokens=self.new_tokens + other.new_tokens,
            devices=tuple(sorted({*self.devices, *other.devices})),
        )

    def per_1000(self, amount: float) -> float | None:
        """An amount per 1,000 measured verdicts; None where none was measured."""
        return 1000 * amount / self.measured if self.measured else None

    def money(self, price_per_device_hour: float) -> float:
        """The price of the device's busy seconds, in the currency of the price."""
        return self.device_s / 3600 * price_per_device_hour


class StageShare(Frozen):
    """The share of one stage of a cascade. `settled` counts the items whose final verdict is this stage's.

    `device_s`: seconds in which its devices held work of it, added up over devices.
    """

    run_id: str
    guard: str
    judged: int = Field(ge=0)
    settled: int = Field(ge=0)
    unparseable: int = Field(ge=0)
    dead: int = Field(ge=0)
    device_s: float = Field(ge=0)


class Against(Frozen):
    """A cascade compared with a run of one guard over the same items. Accuracies are over the items with a truth.

    `accuracy_lost` is the run's accuracy less the cascade's, paired by item; its interval is the normal one.
    """

    run_id: str
    guard: str
    items: int = Field(ge=0)
    agreement: float
    device_s: float = Field(ge=0)
    accuracy: float | None = None
    cascade_accuracy: float | None = None
    accuracy_lost: Interval | None = None


class CascadeShares(Frozen):
    """The division of work among a cascade's stages.

    `device_s_saved` is what the last stage alone would have taken for all items, less what all stages took: as if the
    items it did not see took as long as those it saw. Absent where it saw none. `against` holds what was measured.
    """

    stages: tuple[StageShare, ...]
    device_s_saved: float | None = None
    against: Against | None = None


class RunReport(Shared):
    """The result of a run, as data. Rendering it is not done here.

    `groups` holds one MetricGroup of kind "average" (the benchmark's unweighted mean over sources),
    "all" (the whole run), one per "source", "category" and "subcategory" (named category/subcategory),
    "baseline" (constant unsafe) and, where verdicts were controversial, "loose" (the average were they safe).
    infra.metrics names and defines their metrics. Only the largest groups of a kind are listed; all others are one
    group, with the number of those `merged`. `without_groups` says why there are none.
    `cached` counts the judgements that came from the cache.
    `kinds` counts the items by their kind.
    `cascade` is there where the verdicts are those of several stages.
    """

    version: int = 1
    run_id: str
    name: str
    state: RunState
    spec: RunSpec
    counts: RunCounts
    rule: str = "libra-head"
    fingerprint: dict[str, str] = Field(default_factory=dict)
    groups: tuple[MetricGroup, ...] = ()
    without_groups: str = Field(default="", **ADDED)
    throughput: Throughput | None = None
    dead_reasons: dict[str, int] = Field(default_factory=dict)
    unparseable_reasons: dict[str, int] = Field(default_factory=dict, **ADDED)
    invalid_rows: tuple[InvalidRow, ...] = ()
    invalid_count: int = 0
    dead_items: tuple[ItemId, ...] = ()
    cached: int = Field(default=0, ge=0, **ADDED)
    cost: Cost | None = Field(default=None, **ADDED)
    kinds: dict[str, int] = Field(default_factory=dict, **ADDED)
    cascade: CascadeShares | None = Field(default=None, **ADDED)
    receipt: str = ""
    created_at: str = ""
