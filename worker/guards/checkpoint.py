"""Facts read from a checkpoint's own files: context, stop ids, budget, temperature, tokenizer file. Torch-free.

Also what a folder lacks, and what is wrong with a file that is not what its name says. Weights: weights.py.
"""

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
ADAPTER: Final = "adapter_config.json"
ADAPTER_FILES: Final = (ADAPTER, "adapter_model.safetensors")

_SMALL_FILES: Final = ("*.json", "*.jinja", "*.tiktoken", "tokenizer.model")
_IMPOSTORS: Final = (
    (b"version https://git-lfs", "is a git-LFS pointer, not the file; run git lfs pull there, or hf download"),
    (b"<!doctype", "is a web page, not the file; download the file itself (hf download)"),
    (b"<html", "is a web page, not the file; download the file itself (hf download)"),
    (b"<?xml", "is an error message of a server, not the file; download it again (hf download)"),
    (b"entry not found", "is an error message of a server, not the file; download it again (hf download)"),
    (b"invalid username", "is an error message of a server, not the file; download it again (hf download)"),
    (b"access to model", "is an error message of a server, not the file; log in (hf auth login) and download it again"),
    (b"gguf", "is a GGUF file, which is not read here; take the model's safetensors, or serve it with --engine openai"),
    (b"pk\x03\x04", "is a PyTorch or zip archive, not what its name says; save the model with save_pretrained"),
    (b"\x80\x02", "is a Python pickle, not what its name says; save the model with save_pretrained"),
    (b"\x80\x03", "is a Python pickle, not what its name says; save the model with save_pretrained"),
    (b"\x80\x04", "is a Python pickle, not what its name says; save the model with save_pretrained"),
    (b"\x89hdf", "is a Keras file, not what its name says; take the model's safetensors"),
    (b"\x1f\x8b", "is compressed with gzip; unpack it (gunzip)"),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd; unpack it (zstd -d)"),
)
"""First bytes, in small letters, of files that are not what their names say, and what they are."""
_FOREIGN_WEIGHTS: Final = (
    ("pytorch_model*.bin", "PyTorch's pickled weights"),
    ("*.gguf", "GGUF"),
    ("*.distcp", "a sharded training state (FSDP)"),
    ("*/*.distcp", "a sharded training state (FSDP)"),
    ("zero_to_fp32.py", "a sharded training state (DeepSpeed)"),
    ("*.pth", "PyTorch's pickled weights"),
    ("*.pt", "PyTorch's pickled weights"),
    ("*.ckpt", "PyTorch's pickled weights"),
    ("*.bin", "PyTorch's pickled weights"),
    ("*.h5", "Keras weights"),
    ("*.msgpack", "Flax weights"),
    ("*.onnx", "ONNX"),
)


def context_tokens_of(folder: Path, card_tokens: int | None) -> int:
    """The smaller of what the card and config.json allow."""
    config = read_json(folder / "config.json")
    config = config.get("text_config", config)
    own = config.get("max_position_embeddings", config.get("n_positions"))  # GPT-2's name of it
    known = [tokens for tokens in (card_tokens, own) if isinstance(tokens, int)]
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
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        if path.exists() and (what := impostor(path)):
            raise GuardError(f"{path} {what}") from error
        raise GuardError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise GuardError(f"{path} holds no JSON object; download it again")
    return content


def impostor(path: Path) -> str | None:
    """Return what a file is that is not what its name says, and what to do, as the rest of a sentence; else None."""
    try:
        with path.open("rb") as file:
            start = file.read(64).lower()
    except FileNotFoundError:
        return "is a link to a file that is gone; download it again (hf download)"
    except OSError as error:
        return f"cannot be read ({error.strerror}); give this user the right to read it"
    if not start:
        return "is empty; download it again"
    if path.suffix == ".safetensors":
        start = start if start[8:9] != b"{" else b""  # the first bytes are a number, which may look like anything
    return next((what for sign, what in _IMPOSTORS if start.lstrip().startswith(sign)), None)


def check_complete(folder: Path, name: str, *, weights: bool) -> None:
    """See that a folder holds what a guard needs, by the names and first bytes of its files.

    Raises:
        GuardError: it does not; in one sentence, with what to do.
    """
    for file in sorted(file for pattern in _SMALL_FILES for file in folder.glob(pattern)):
        if what := impostor(file):
            raise GuardError(f"{name}: {file} {what}")
    if (folder / ADAPTER).is_file():
        raise GuardError(f"{name}: {_adapter_alone(folder)}")
    lacking = [] if (folder / "config.json").is_file() else ["config.json"]
    if not ((folder / TOKENIZER_JSON).is_file() or (folder / QWEN_V1).is_file()):
        lacking.append(_lacking_tokenizer(folder, name))
    if weights and not any(folder.glob("*.safetensors")):
        lacking.append(_lacking_weights(folder))
    if lacking:
        raise GuardError(f"{name}: {folder} lacks {', '.join(lacking)}{_elsewhere(folder)}")


def _adapter_alone(folder: Path) -> str:
    base = read_json(folder / ADAPTER).get("base_model_name_or_path") or "BASE"
    if any(folder.glob("model*.safetensors")):
        return f"{folder} holds both a model and an adapter ({ADAPTER}); move one of them to a folder of its own"
    return (
        f"{folder} is an adapter without its base model; name both as BASE+ADAPTER ({base}+{folder}), or merge it into "
        "its base (peft: merge_and_unload) and name that"
    )


def _lacking_tokenizer(folder: Path, name: str) -> str:
    config = folder / "tokenizer_config.json"
    if config.is_file() and "auto_map" in read_json(config):
        raise GuardError(f"{name}: {folder} needs its own tokenizer code, which is not run; add a {TOKENIZER_JSON}")
    slow = next(
        (
            file
            for file in ("tokenizer.model", "spiece.model", "vocab.txt", "vocab.json", "sentencepiece.bpe.model")
            if (folder / file).is_file()
        ),
        None,
    )
    if slow is None:
        return TOKENIZER_JSON
    return (
        f"{TOKENIZER_JSON} (it has {slow}: write it with "
        f"AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r}))"
    )


def _lacking_weights(folder: Path) -> str:
    for pattern, kind in _FOREIGN_WEIGHTS:
        if found := sorted(folder.glob(pattern)):
            return (
                f"*.safetensors (it has {found[0].relative_to(folder)}, {kind}, which is not read: convert it with "
                f"AutoModelForCausalLM.from_pretrained(SOURCE).save_pretrained({str(folder)!r}), or download the "
                "model's safetensors)"
            )
    return "*.safetensors"


def _elsewhere(folder: Path) -> str:
    """Where the checkpoint may lie instead, as the end of the sentence."""
    inside = sorted(
        file.parent for pattern in ("*/config.json", "snapshots/*/config.json") for file in folder.glob(pattern)
    )
    return f"; did you mean {inside[-1]}?" if inside and not (folder / "config.json").is_file() else ""
