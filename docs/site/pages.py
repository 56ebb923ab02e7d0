"""Which pages the site has, and in which order: tolerant of pages that are new or not there."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

REST: Final = "More"

_FIXED: Final = {
    "README.md": "index.md",
    "README.zh.md": "zh.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}


def published(root: Path) -> dict[str, str]:
    """Every file of the repository that the site shows: its path there, and its path on the site."""
    found = {source: place for source, place in _FIXED.items() if (root / source).is_file()}
    for path in sorted((root / "docs").rglob("*")):
        source = path.relative_to(root).as_posix()
        if path.suffix in {".md", ".svg", ".png"} and not source.startswith("docs/site/"):
            place = source.removeprefix("docs/")
            found[source] = place.removesuffix("README.md") + "index.md" if path.name == "README.md" else place
    for card in sorted((root / "worker/guards").glob("*/README.md")):
        found[card.relative_to(root).as_posix()] = f"guards/{card.parent.name}.md"
    return found


def navigation(sections: Sequence[dict[str, list[str]]], pages: Sequence[str]) -> list[dict[str, list[str]]]:
    """The sections with the pages that are there, and a last one for those that no section names.

    Args:
        sections: a heading each, over paths on the site or patterns of such.
        pages: paths on the site.
    """
    left = sorted(pages)
    tree = []
    for section in sections:
        ((heading, wanted),) = section.items()
        named = [page for pattern in wanted for page in left if fnmatch(page, pattern)]
        left = [page for page in left if page not in named]
        tree.append({heading: list(dict.fromkeys(named))})
    return [section for section in [*tree, {REST: left}] if any(section.values())]
