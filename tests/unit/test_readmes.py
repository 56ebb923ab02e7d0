"""The English and the Chinese README show the same commands, output and links."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ENGLISH = (ROOT / "README.md").read_text(encoding="utf-8")
CHINESE = (ROOT / "README.zh.md").read_text(encoding="utf-8")


def _blocks(text: str) -> list[list[str]]:
    """Lines of each fenced block without their comments; of the tree, the names of files and folders alone."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [
        re.findall(r"[\w*.]+(?:/|\.py)|\w+\.md", body)
        if body.startswith("libra_fleet/")
        else [re.sub(r"\s+# .*", "", line) for line in body.splitlines()]
        for _, body in blocks
    ]


def _commands(text: str) -> list[str]:
    """What stands in code in the first cell of each row of the table of commands."""
    return re.findall(r"^\| (`libra [^|]*`) \|", text, re.MULTILINE)


def _links(text: str) -> set[str]:
    return set(re.findall(r"\]\(([^)]+)\)", text)) - {"README.md", "README.zh.md"}


def test_both_show_the_same_commands_and_output() -> None:
    assert "make demo" in str(_blocks(ENGLISH))
    assert _blocks(CHINESE) == _blocks(ENGLISH)
    assert len(_commands(ENGLISH)) > 10
    assert _commands(CHINESE) == _commands(ENGLISH)


def test_both_have_the_same_sections_and_links() -> None:
    assert _links(CHINESE) == _links(ENGLISH)
    levels = [[len(marks) for marks in re.findall(r"^(#+) ", text, re.MULTILINE)] for text in (ENGLISH, CHINESE)]
    assert levels[0] == levels[1]


def test_each_leads_to_the_other_on_its_first_lines() -> None:
    assert "(README.zh.md)" in "".join(ENGLISH.splitlines()[:4])
    assert "(README.md)" in "".join(CHINESE.splitlines()[:4])
