"""Where a device's rate comes from: a run in the ledger, its report as a file, or the engine's benchmark."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from pydantic import ValidationError

from infra.errors import DataError, UsageError
from infra.guard_catalogue import GUARDS
from infra.ledger import costs, reading
from schemas.messages import Lane
from schemas.runs import Cost, RunReport

_ENOUGH: Final = 100
"""Judgements below which a run says little about a device."""
_BENCHMARK_GUARD: Final = "qwen2.5-0.5b-instruct"
"""Whose shape tests/benchmarks/engine.py runs."""


class Measured(NamedTuple):
    """Items that one busy device judges in a second, on which device, by which source."""

    items_per_device_s: float
    device: str
    source: str
    tokens_per_item: float | None = None


def from_run(engine: sa.Engine, run: str, guard: str) -> Measured:
    """What a run in the ledger measured.

    Raises:
        UsageError: no such run, of another guard, or nothing was measured in it.
    """
    status = reading.run_status(engine, run)
    if status.spec.guard != guard:
        raise UsageError(f"run {status.name} is of {status.spec.guard}, not of {guard}")
    cost = costs.run_cost(engine, status.id)
    return _rate(cost, reading.cached_count(engine, status.id), f"run {status.name}")


def newest(engine: sa.Engine, guard: str) -> Measured | None:
    """The newest bulk run of a guard that measured enough; None where there is none."""
    for one in costs.run_costs(engine):
        if one.guard == guard and one.lane == Lane.BULK and one.cost.device_s > 0 and one.cost.measured >= _ENOUGH:
            try:
                return _rate(one.cost, reading.cached_count(engine, one.run_id), f"run {one.name}")
            except UsageError:
                continue
    return None


def from_file(path: Path, guard: str) -> Measured:
    """What a file holds: a run's report (`libra bench report RUN --json`), or figures of `make bench`.

    Raises:
        DataError: it is neither.
        UsageError: it is of another guard, or nothing was measured.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content: Any = json.loads(text)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {error}") from error
    if isinstance(content, dict) and "figures" in content:
        return _benchmark(path, content, guard)
    try:
        report = RunReport.model_validate_json(text)
    except ValidationError as error:
        raise DataError(f"{path} is neither a run's report nor a benchmark's figures") from error
    if report.spec.guard != guard:
        raise UsageError(f"{path} is of {report.spec.guard}, not of {guard}")
    return _rate(report.cost or Cost(), report.cached, f"report {path.name}")


def _rate(cost: Cost, cached: int, source: str) -> Measured:
    judged = cost.measured - cached
    if judged < _ENOUGH or cost.device_s <= 0:
        raise UsageError(
            f"{source}: {max(0, judged):,} judgements were measured on a device; at least {_ENOUGH} are needed "
            "(runs of older workers, and what the cache answered, say nothing of a device)"
        )
    if len(cost.devices) > 1:
        raise UsageError(f"{source} ran on several kinds of device ({'; '.join(cost.devices)}): measure one of them")
    device = cost.devices[0] if cost.devices else "unknown"
    return Measured(judged / cost.device_s, device, source, (cost.prompt_tokens + cost.new_tokens) / judged)


def _benchmark(path: Path, content: dict[str, Any], guard: str) -> Measured:
    shape, card = GUARDS[_BENCHMARK_GUARD], GUARDS.get(guard)
    alike = card and (card.architecture, card.nominal_parameters) == (shape.architecture, shape.nominal_parameters)
    if not alike:
        raise UsageError(f"{path}: the engine's benchmark runs the shape of {_BENCHMARK_GUARD}, not of {guard}")
    rates = [
        figure["value"]
        for figure in content["figures"]
        if (figure.get("bench"), figure.get("name"), figure.get("unit")) == ("engine", "this engine", "items/s")
    ]
    if not rates:
        raise DataError(f"{path} holds no rate of the engine (make bench BENCH=engine)")
    machine = content.get("machine", {})
    device = str(machine.get("gpu") or f"{machine.get('cpu', 'unknown')}, {machine.get('cores', '?')} cores")
    return Measured(float(rates[-1]), device, f"benchmark {path.name}, random weights of this shape")
