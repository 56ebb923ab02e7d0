"""A RunReport as JSON, for scripts and for keeping."""

from __future__ import annotations

import json

from producer.report.cost import cost_facts
from schemas.runs import RunReport


def to_json(report: RunReport, *, price_per_device_hour: float | None = None) -> str:
    """The whole report, indented, Chinese as it is; equal reports give equal text. With a price, cost is money too.

    `RunReport.model_validate_json` reads it back.
    """
    content = report.model_dump(mode="json")
    for unordered in ("fingerprint", "dead_reasons"):
        content[unordered] = dict(sorted(content[unordered].items()))
    if report.cost is not None:
        content["cost"] = cost_facts(report.cost, price_per_device_hour)
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
