"""If a checkpoint's weights fit the model that its config.json describes, and are numbers that a model can have.

The first question is answered from headers, on torch's meta device, so that it costs no memory; the second from the
loaded weights. It knows nothing of prompts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.utils import logging as transformers_logging

import worker.device.ngram_lm  # noqa: F401 - registers this project's own architecture
from infra.errors import GuardError
from worker.device.engines.adapter import check_adapter_fit
from worker.device.guard_heads import ARCHITECTURE as GUARD_HEADS
from worker.device.guard_heads import GuardHeadsModel
from worker.guards.adapter import Adapter
from worker.guards.checkpoint import QWEN_V1, TOKENIZER_JSON, read_json
from worker.guards.vocabulary import backend_tokenizer
from worker.guards.weights import Tensor, Weights, check_config, check_vocabulary, read_weights

_HARMLESS: Final = re.compile(r"(^|\.)(position_ids|token_type_ids|inv_freq|masked_bias|num_batches_tracked)$")
"""Buffers that older versions saved, and that a model computes by itself."""
_OTHER_SENSES: Final = re.compile(r"(^|\.)(vision_\w+|visual|audio_\w+|multi_modal_\w+|embed_(vision|audio))\.")
"""What a model that also sees or hears has, of which only the text's part is run."""
_WRAPPERS: Final = {
    "_orig_mod.": "torch.compile",
    "_fsdp_wrapped_module.": "FSDP",
    "_forward_module.": "Lightning or DeepSpeed",
    "base_model.model.": "peft, whose adapter was not merged",
    "module.": "DistributedDataParallel",
}
_IS_HEAD: Final = re.compile(r"(score|classifier)\b|\w+_head\b")
_PIECE: Final = 1 << 24
"""Numbers that are looked at together, so that the look needs little memory."""
_FEWEST_COLUMNS: Final = 8
"""A table with fewer rows or columns may be zero on purpose: RoBERTa's single token type is."""


def classifier_of(folder: Path) -> Any:  # noqa: ANN401 - transformers has no types
    """The class that makes a classifier of a checkpoint: transformers' own choice, or ours for guard heads."""
    architectures = read_json(folder / "config.json").get("architectures") or []
    return GuardHeadsModel if GUARD_HEADS in architectures else AutoModelForSequenceClassification


def check_fit(
    folder: Path, adapter: Adapter | None = None, *, classifies: bool, trust_remote_code: bool = False
) -> Weights:
    """See from the files alone that a checkpoint, and an adapter over it, can be what they say; returns what it holds.

    Raises:
        GuardError: files, config.json, tokenizer, model and adapter do not fit each other; the message says what to do.
    """
    weights = read_weights(folder)
    check_config(folder, weights, classifies=classifies)
    rows = _check_keys(folder, weights, adapter, classifies=classifies, trust_remote_code=trust_remote_code)
    if any((folder / name).is_file() for name in (TOKENIZER_JSON, QWEN_V1)):
        ids = backend_tokenizer(folder).get_vocab(with_added_tokens=True).values()
        check_vocabulary(folder, rows, max(ids, default=-1) + 1)
    return weights


def _check_keys(
    folder: Path, weights: Weights, adapter: Adapter | None, *, classifies: bool, trust_remote_code: bool
) -> int:
    """Compare keys and shapes with those of the model, through transformers' own renaming; returns its embeddings."""
    auto: Any = classifier_of(folder) if classifies else AutoModelForCausalLM
    with quiet():
        try:
            config: Any = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
            with torch.device("meta"):
                empty: Any = auto.from_config(config, trust_remote_code=trust_remote_code)
        except Exception as error:
            raise GuardError(f"{folder}: its config.json describes no model here: {_brief(error)}") from error
        if not getattr(config, "quantization_config", None):
            tensors = {key: _empty(tensor) for key, tensor in weights.tensors.items()}
            try:
                _, report = type(empty).from_pretrained(
                    None,
                    config=empty.config,  # a part of the whole, where only the text is asked for
                    state_dict=tensors,
                    device_map={"": "meta"},
                    ignore_mismatched_sizes=True,
                    output_loading_info=True,
                )
            except Exception as error:
                raise GuardError(f"cannot load {folder}: {_brief(error)}") from error
            refuse_misfits(folder, report)
        elif adapter:
            raise GuardError(
                f"{folder} is quantised, and merging {adapter.folder} into it would round them; take the base in BF16"
            )
        rows = int(empty.get_input_embeddings().weight.shape[0])
        if adapter:
            check_adapter_fit(empty, folder, adapter)
    return rows


@contextmanager
def quiet() -> Iterator[None]:
    """Without the reports and bars that transformers prints while loading: ours say what to do."""
    before = transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def _empty(tensor: Tensor) -> torch.Tensor:
    return torch.empty(tensor.shape, dtype=torch.bfloat16, device="meta")


def refuse_misfits(folder: Path, report: dict[str, Any]) -> None:
    """Refuse what transformers would fill with random numbers or leave out; `report` is its loading info.

    Raises:
        GuardError: keys are missing, unexpected or of another shape.
    """
    missing = sorted(report["missing_keys"])
    senses = {"vision_config", "audio_config"} & read_json(folder / "config.json").keys()
    unexpected = sorted(
        key
        for key in report["unexpected_keys"]
        if not (_HARMLESS.search(key) or (senses and _OTHER_SENSES.search(key)))
    )
    mismatched = sorted(report["mismatched_keys"])
    if unexpected and (prefix := _added_prefix(unexpected, missing)):
        whose = next((f" ({name})" for mark, name in _WRAPPERS.items() if mark in prefix), "")
        raise GuardError(
            f"{folder}: the keys of {len(unexpected):,} weights begin with {prefix!r}{whose}, such as {unexpected[0]}, "
            "so that none of them is loaded; save the model inside its wrapper with save_pretrained"
        )
    if any("lora_" in key for key in unexpected):
        raise GuardError(
            f"{folder}: holds a LoRA adapter's weights that were not merged ({_first(unexpected)}); "
            "merge them (peft: merge_and_unload) and save the model"
        )
    if mismatched:
        key, found, wanted = mismatched[0]
        raise GuardError(
            f"{folder}: {key} is {_by(found)} in the file and {_by(wanted)} by config.json"
            f"{_and_more(mismatched)}; take the config.json that belongs to these weights"
        )
    if missing:
        raise GuardError(
            f"{folder} lacks {_first(missing)}, which would be random numbers"
            f"{f' (and holds {_first(unexpected)}, which the model has not)' if unexpected else ''}; "
            "save the whole model with its head (save_pretrained), or take the config.json that belongs to the weights"
        )
    if unexpected:
        raise GuardError(
            f"{folder} holds {_first(unexpected)}, which the model of its config.json has not; "
            "take the config.json that belongs to these weights"
        )
    if report.get("error_msgs"):
        raise GuardError(f"cannot load {folder}: {_brief(report['error_msgs'][0])}")


def _added_prefix(unexpected: list[str], missing: list[str]) -> str:
    """What most keys have before, or between the parts of, a key that the model lacks; empty if nothing."""
    wanted = set(missing)
    for mark in _WRAPPERS:
        if sum(key.replace(mark, "") in wanted for key in unexpected) * 2 > len(unexpected):
            return mark
    key = unexpected[0]
    for at in (place + 1 for place, letter in enumerate(key) if letter == "."):
        prefix = key[:at]
        if sum(other.removeprefix(prefix) in wanted for other in unexpected) * 2 > len(unexpected):
            return prefix
    return ""


def check_values(folder: Path, model: torch.nn.Module) -> None:
    """See that the loaded weights are finite, and that none of the large ones is zero throughout.

    Raises:
        GuardError: one is not.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    heads = {id(head.weight)} if head is not None and hasattr(head, "weight") else set()
    heads |= {id(weight) for name, weight in model.named_parameters() if _IS_HEAD.match(name)}
    for name, weight in model.named_parameters():
        if weight.device.type == "meta" or not weight.dtype.is_floating_point:
            continue
        pieces: Any = torch.split(weight.detach().flatten(), _PIECE)
        if not all(bool(_plain(piece).isfinite().all()) for piece in pieces):
            raise GuardError(
                f"{folder}: {name} holds NaN or infinite values; the training diverged or the file is broken: "
                "take an earlier checkpoint, or download it again"
            )
        table = weight.ndim >= 2 and (id(weight) in heads or min(weight.shape) >= _FEWEST_COLUMNS)
        if table and not any(bool(_plain(piece).any()) for piece in pieces):
            raise GuardError(f"{folder}: {name} is zero throughout; save or download the checkpoint again")


def _plain(piece: torch.Tensor) -> torch.Tensor:
    """A type that torch can look at: 8-bit ones have no operations of their own."""
    return piece.float() if piece.dtype.itemsize < 2 else piece


def _brief(error: object) -> str:
    """An error's text in one line, and no more of it than is read."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _by(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape))


def _and_more(found: list[Any]) -> str:
    return f" (and {len(found) - 1:,} more keys)" if len(found) > 1 else ""


def _first(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3:,} more keys" if len(keys) > 3 else "")
