"""Facts read from a checkpoint's own files: context, stop ids, budget, temperature, tokenizer file. Torch-free."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Final

from infra.errors import GuardError

TOKENIZER_JSON: Final = "tokenizer.json"
QWEN_V1: Final = "qwen.tiktoken"
CALIBRATION: Final = "libra.json"
"""Facts that training leaves for serving: {"temperature": number, …}."""


def context_tokens_of(folder: Path, card_tokens: int | None) -> int:
    """The smaller of what the card and config.json allow."""
    config = read_json(folder / "config.json")
    config = config.get("text_config", config)
    known = [tokens for tokens in (card_tokens, config.get("max_position_embeddings")) if isinstance(tokens, int)]
    if not known:
        raise GuardError(f"{folder}/config.json has no max_position_embeddings, so the context's length is unknown")
    return min(known)


def generation_stop_ids(folder: Path) -> list[int]:
    """Return the end ids named by generation_config.json and config.json, in this order."""
    stops: list[int] = []
    for name in ("generation_config.json", "config.json"):
        found = read_json(folder / name).get("eos_token_id") if (folder / name).is_file() else None
        stops += [] if found is None else found if isinstance(found, list) else [found]
    return stops


def generation_budget(folder: Path, wanted: int) -> int:
    """The tokens wanted, or the checkpoint's own limit where it is lower."""
    path = folder / "generation_config.json"
    own = read_json(path).get("max_new_tokens") if path.is_file() else None
    return min(wanted, own) if isinstance(own, int) and own > 0 else wanted


def temperature_of(folder: Path) -> float:
    """Return the temperature that divides the labels' log-probabilities; 1 for a folder that was not calibrated.

    Raises:
        GuardError: the file says something that is no temperature.
    """
    path = folder / CALIBRATION
    if not path.is_file():
        return 1.0
    found = read_json(path).get("temperature", 1.0)
    if isinstance(found, bool) or not isinstance(found, int | float) or not (math.isfinite(found) and found > 0):
        raise GuardError(f"{path}: temperature is a number above 0")
    return float(found)


def calibration_mark(temperature: float) -> tuple[str, ...]:
    """Return a temperature's part of the digest; empty at 1, where verdicts equal those of an uncalibrated guard."""
    return () if temperature == 1 else (f"temperature {temperature!r}",)


def tokenizer_file(folder: Path) -> Path:
    """The file that holds the folder's tokenizer.

    Raises:
        GuardError: there is none that can be read here.
    """
    for name in (TOKENIZER_JSON, QWEN_V1):
        if (folder / name).is_file():
            return folder / name
    raise GuardError(
        f"{folder} has no tokenizer.json; save the checkpoint's fast tokenizer there "
        "(AutoTokenizer.from_pretrained(...).save_pretrained(folder))"
    )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        GuardError: it cannot be read.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise GuardError(f"cannot read {path}: {error}") from error
    return content
