"""The results as a page for people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read(out: Path) -> list[dict[str, Any]]:
    """The results so far, in order."""
    return [json.loads(line) for line in (out / "results.jsonl").read_text(encoding="utf-8").splitlines()]


def page(results: list[dict[str, Any]], *, dry: bool) -> str:
    """Markdown: the machine, every check with its outcome, every stage with its end, then all figures by stage."""
    title = "# GPU check, dry: a CPU with toy shapes, no figure means anything" if dry else "# GPU check"
    parts = [title, "", "| check | stage | holds |", "|---|---|---|"]
    for result in results:
        if "check" in result:
            parts.append(f"| {result['check']} | {result['stage']} | {'yes' if result['ok'] else '**NO**'} |")
        elif "ended" in result:
            how = f"in {result['s']} s of {result['limit_s']}" if result["ended"] == 0 else f"**{result['ended']}**"
            parts.append(f"| {result['stage']} ends | {result['stage']} | {how} |")
    for stage in dict.fromkeys(result["stage"] for result in results):
        parts += ["", f"## {stage}", ""]
        for result in results:
            facts = {name: value for name, value in result.items() if name not in ("stage", "t")}
            if result["stage"] == stage:
                parts.append("- " + ", ".join(f"{name}: {_text(value)}" for name, value in facts.items()))
    return "\n".join(parts) + "\n"


def _text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)


def sound(results: list[dict[str, Any]]) -> bool:
    """Whether every stage ended and every check holds."""
    return all(result.get("ok", True) and result.get("ended", 0) == 0 for result in results)
