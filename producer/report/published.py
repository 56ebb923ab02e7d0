"""The benchmark's published table, to stand beside a run's own numbers."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Final

import yaml
from pydantic import BaseModel, ConfigDict

from schemas.runs import RunReport

_FILE: Final = Path(__file__).with_name("published.yaml")
_NAMES: Final = {"Safety-Prompts": "Real Data", "synthesis": "Synthetic Data", "BeaverTails_30k": "Translated Data"}
"""The sources' names of the benchmark's first era → those of the later one."""


class PublishedRow(BaseModel):
    """A model's published averages; F1 is absent where none was published."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    accuracy: float
    real: float
    synthetic: float
    translated: float
    f1_safe: float | None = None
    f1_unsafe: float | None = None


class Published(BaseModel):
    """The table, where it is from, and how many items each source of the benchmark has."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    items: dict[str, int]
    rows: tuple[PublishedRow, ...]


@cache
def published() -> Published:
    """The table as it is shipped."""
    return Published.model_validate(yaml.safe_load(_FILE.read_text(encoding="utf-8")))


def is_the_benchmark(report: RunReport) -> bool:
    """Whether a run was over the whole benchmark, as far as names and sizes of its sources tell."""
    sizes = {}
    for group in report.groups:
        metric = group.metric("accuracy")
        if group.kind == "source" and metric:
            sizes[_NAMES.get(group.name, group.name)] = metric.n
    return sizes == published().items
