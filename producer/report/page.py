"""One self-contained HTML file: the template with its style, script and pictures inside, and nothing from elsewhere.

User text is hostile. It is escaped where it stands, never in a script or a style, and the page's own policy lets no
script run but the one it came with.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final, NamedTuple

import jinja2
import sqlalchemy as sa
from markupsafe import Markup

from infra.ledger import stats
from infra.ledger.items import judged_rows
from infra.ledger.stats import Mistakes, Pace, Volume, WorkerShare
from infra.metrics.curves import ThresholdSweep, trace
from producer.report import view
from producer.report.comparison import COLUMNS, Pairing, Ranking
from producer.report.figures import of_pace, of_scores
from producer.report.view import is_the_benchmark, published
from schemas.runs import RunReport

LISTED_PER_KIND: Final = 250
_CHUNKS_PER_BAR: Final = 2
"""So that a bar of throughput shows more than whether a chunk happened to end in it."""
_BARS: Final = (6, 60)
MAX_SOURCES: Final = 6
"""Sources with a curve of their own: more would be a tangle."""


class RunDetails(NamedTuple):
    """The run behind the numbers."""

    traced: ThresholdSweep
    mistakes: Mistakes
    pace: Pace | None
    workers: list[WorkerShare]
    volume: Volume


def gather(engine: sa.Engine, report: RunReport) -> RunDetails:
    """Read what the page of a run needs; one pass over its rows, and a few sums."""
    workers = stats.workers(engine, report.run_id)
    bars = sum(share.chunks for share in workers) // _CHUNKS_PER_BAR
    return RunDetails(
        traced=trace(judged_rows(engine, report.run_id), largest_sources(report)),
        mistakes=stats.mistakes(engine, report.run_id, limit=LISTED_PER_KIND),
        pace=stats.pace(engine, report.run_id, bars=min(max(bars, _BARS[0]), _BARS[1])),
        workers=workers,
        volume=stats.volume(engine, report.run_id),
    )


def largest_sources(report: RunReport) -> list[str]:
    """The sources that get a curve of their own, in the report's order; none where there is only one."""
    sizes = {g.name: m.n for g in report.groups if g.kind == "source" and (m := g.metric("accuracy"))}
    if len(sizes) < 2:
        return []
    chosen = sorted(sizes, key=lambda name: -sizes[name])[:MAX_SOURCES]
    return [name for name in sizes if name in chosen]


_EXAMPLE_CHARS: Final = 400

Texts = Mapping[int, tuple[str, str]]
"""Question and response by item number."""

_TEMPLATES: Final = Path(__file__).with_name("templates")
_ENVIRONMENT: Final = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_TEMPLATES),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_STYLE: Final = (_TEMPLATES / "page.css").read_text(encoding="utf-8")
_SCRIPT: Final = (_TEMPLATES / "page.js").read_text(encoding="utf-8")
_SCRIPT_HASH: Final = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
_POLICY: Final = (
    f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{_SCRIPT_HASH}'; "
    "base-uri 'none'; form-action 'none'"
)


def _assembled(template: str, **values: object) -> str:
    """A page from a template; equal values give equal bytes."""
    return _ENVIRONMENT.get_template(template).render(
        style=Markup(_STYLE),  # noqa: S704 - our own files
        script=Markup(_SCRIPT),  # noqa: S704
        policy=_POLICY,
        version=version("libra-fleet"),
        **values,
    )


def run_page(report: RunReport, evidence: RunDetails, *, with_text: bool) -> str:
    """The page of one run."""
    notes = view.Footnotes()
    whole = next(iter(view.of_kind(report, "all")), None)
    spec, asked = report.spec, report.spec.model_dump(mode="json", exclude_defaults=True)
    histogram = []
    for group in [*view.of_kind(report, "source"), *view.of_kind(report, "all")]:
        counts = [int(group.value(name) or 0) for name in ("verdict_unsafe", "verdict_safe", "unparseable", "dead")]
        histogram.append(("All" if group.kind == "all" else group.name or "(no source)", sum(counts), counts))
    return _assembled(
        "report.html",
        report=report,
        evidence=evidence,
        average=view.average(report),
        baseline=next(iter(view.of_kind(report, "baseline")), None),
        labelled=view.has_truth(report),
        headline=view.headline(report, notes),
        columns=[title for _, title in view.HEADLINE],
        verdict_histogram=histogram,
        slices={kind: view.slices(report, kind, notes) for kind in ("category", "subcategory")},
        notes=notes.reasons,
        confusions=view.confusions(report),
        published=published(),
        ranked=view.ranked([report]),
        comparable=is_the_benchmark(report),
        score_pictures=of_scores(evidence.traced, whole),
        thresholds=view.thresholds(evidence.traced.sweep),
        swept=[title for _, title in view.SWEPT],
        imported=view.is_imported(report),
        pace_pictures=of_pace(evidence.pace) if evidence.pace and not view.is_imported(report) else [],
        mistakes=view.listed(evidence.mistakes.listed, with_text=with_text),
        with_text=with_text,
        spec={"mode": spec.mode.value, **asked, "seed": spec.seed if spec.seed is not None else "none"},
    )


def board_page(rankings: Sequence[Ranking], pairings: Sequence[Pairing], texts: Mapping[str, Texts]) -> str:
    """The page of runs, best first; `texts` of the examples by the id of the second run, none where there are none."""
    reports = [ranking.report for ranking in rankings]
    return _assembled(
        "compare.html",
        rankings=rankings,
        columns=COLUMNS,
        pairings=pairings,
        texts={
            run: {seq: tuple(view.cut(text, _EXAMPLE_CHARS) for text in pair) for seq, pair in found.items()}
            for run, found in texts.items()
        },
        published=published(),
        ranked=view.ranked([report for report in reports if is_the_benchmark(report)]),
        comparable=any(map(is_the_benchmark, reports)),
        widths=[max(0.0, 100 * ranking.accuracy) for ranking in rankings],
    )
