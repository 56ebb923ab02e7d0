"""`python -m docs.site` makes out/docs/site from pages in out/docs/pages; exit code 1 where anything warns."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from docs.site import pages, reference
from docs.site.links import rewrite

ROOT = Path(__file__).parents[2]
OUT = ROOT / "out/docs"


def write_pages() -> list[str]:
    """Write every page of the site; their paths."""
    shutil.rmtree(OUT, ignore_errors=True)
    places = pages.published(ROOT)
    for source, place in places.items():
        path = OUT / "pages" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".md":
            text = (ROOT / source).read_text(encoding="utf-8")
            path.write_text(rewrite(text, source, places, lambda wanted: (ROOT / wanted).exists()), encoding="utf-8")
        else:
            shutil.copy(ROOT / source, path)
    made = reference.pages()
    for place, text in made.items():
        path = OUT / "pages" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return [place for place in [*places.values(), *made] if place.endswith(".md")]


def write_settings(names: list[str]) -> Path:
    """Write the settings with their navigation; their path."""
    here = Path(__file__).parent
    settings = yaml.safe_load((here / "mkdocs.yml").read_text(encoding="utf-8"))
    sections = yaml.safe_load((here / "sections.yml").read_text(encoding="utf-8"))
    settings |= {"docs_dir": "pages", "site_dir": "site", "nav": pages.navigation(sections, names)}
    for plugin in settings["plugins"]:
        if "mkdocstrings" in plugin:
            plugin["mkdocstrings"]["handlers"]["python"]["paths"] = [str(ROOT)]
    path = OUT / "mkdocs.yml"
    path.write_text(yaml.safe_dump(settings, allow_unicode=True, sort_keys=False), encoding="utf-8")
    return path


def main() -> int:
    """Build the site; the builder's exit code."""
    settings = write_settings(write_pages())
    builder = Path(sys.executable).with_name("zensical")
    return subprocess.run([builder, "build", "--clean", "--strict", "-f", settings], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
