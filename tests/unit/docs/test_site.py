"""Links and navigation of the documentation site."""

from __future__ import annotations

from pathlib import Path

import pytest

from docs.site.links import rewrite
from docs.site.pages import navigation, published

ROOT = Path(__file__).parents[3]
PLACES = {
    "README.md": "index.md",
    "docs/gateway.md": "gateway.md",
    "docs/decisions/README.md": "decisions/index.md",
    "docs/decisions/0001-x.md": "decisions/0001-x.md",
    "docs/scaling.svg": "scaling.svg",
}
FILES = {*PLACES, "worker/supervisor.py", "docs/decisions"}


@pytest.mark.parametrize(
    ("source", "written", "on_the_site"),
    [
        ("README.md", "[a](docs/gateway.md)", "[a](gateway.md)"),
        ("README.md", "[a](docs/gateway.md#keys)", "[a](gateway.md#keys)"),
        ("docs/gateway.md", "[`a` [b]](../README.md)", "[`a` [b]](index.md)"),
        ("docs/decisions/0001-x.md", "[a](../gateway.md) [b](README.md)", "[a](../gateway.md) [b](index.md)"),
        ("docs/gateway.md", "[a](decisions/) ![b](scaling.svg)", "[a](decisions/index.md) ![b](scaling.svg)"),
        (
            "docs/gateway.md",
            "[a page](../worker/supervisor.py), [b](../worker/gone.py)",
            "a page, [b](../worker/gone.py)",
        ),
        ("docs/gateway.md", "[a](https://example.org/x.md) [b](#keys)", "[a](https://example.org/x.md) [b](#keys)"),
        ("README.md", "`[a](docs/gateway.md)` [b](docs/gateway.md)", "`[a](docs/gateway.md)` [b](gateway.md)"),
        (
            "README.md",
            "```\n[a](docs/gateway.md)\n```\n[b](docs/gateway.md)",
            "```\n[a](docs/gateway.md)\n```\n[b](gateway.md)",
        ),
    ],
)
def test_link_leads_to_the_page_becomes_text_or_is_left_for_the_strict_build(
    source: str, written: str, on_the_site: str
) -> None:
    assert rewrite(written, source, PLACES, FILES.__contains__) == on_the_site


def test_navigation_leaves_out_what_is_missing_and_keeps_what_is_new() -> None:
    sections = [{"How-to": ["gateway.md", "reports.md"]}, {"Later": ["later.md"]}, {"Why": ["decisions/*.md"]}]
    assert navigation(sections, ["new.md", "decisions/0001-x.md", "gateway.md"]) == [
        {"How-to": ["gateway.md"]},
        {"Why": ["decisions/0001-x.md"]},
        {"More": ["new.md"]},
    ]


def test_every_page_of_docs_is_published_once() -> None:
    places = published(ROOT)
    pages = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert pages <= places.keys()
    assert len(set(places.values())) == len(places)
