"""A RunReport as JSON, for scripts and for keeping."""

from __future__ import annotations

import json

from schemas.runs import RunReport


def to_json(report: RunReport) -> str:
    """The whole report, indented, Chinese as it is; equal reports give equal text.

    `RunReport.model_validate_json` reads it back.
    """
    content = report.model_dump(mode="json")
    for unordered in ("fingerprint", "dead_reasons"):
        content[unordered] = dict(sorted(content[unordered].items()))
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
