"""A LoRA adapter over a base checkpoint: what its own files say. Torch-free.

The guard's language (tokenizer, template, config) is the base's. If the adapter's weights fit the base's model is
worker/device/engines/adapter.py's question.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from infra.errors import GuardError
from worker.guards.checkpoint import ADAPTER, ADAPTER_FILES, TOKENIZER_JSON, impostor, read_json
from worker.guards.vocabulary import load_tokenizer
from worker.guards.weights import Tensor, read_header

_TASKS: Final = {False: "CAUSAL_LM", True: "SEQ_CLS"}
_CHANGES_BASE: Final = ("pissa", "olora", "loftq", "corda")
"""Ways to begin a training that take part of the base's weights away, so that the published base is not its base."""


@dataclass(frozen=True)
class Adapter:
    """A folder in peft's own form: its configuration, and the tensors that its header lists."""

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @property
    def base_name(self) -> str:
        """The base that it was trained on, as its training named it."""
        return str(self.config.get("base_model_name_or_path") or "no base")


def read_adapter(folder: Path, *, classifies: bool) -> Adapter:
    """The adapter in a folder.

    Raises:
        GuardError: it is none, or none that can be merged into such a base; in one sentence, with what to do.
    """
    if not (folder / ADAPTER).is_file():
        raise GuardError(
            f"{folder} is no adapter: it has no {ADAPTER}; name the folder that peft's save_pretrained wrote"
        )
    config = read_json(folder / ADAPTER)
    kind, begun = str(config.get("peft_type") or "of no type"), str(config.get("init_lora_weights", True))
    if kind != "LORA":
        raise GuardError(
            f"{folder} is an adapter of type {kind}; only LoRA is merged here, so merge it with peft first"
        )
    if begun.startswith(_CHANGES_BASE):
        raise GuardError(
            f"{folder}: its training ({begun}) changed the base as well; save it as a plain LoRA "
            "(peft: save_pretrained with path_initial_model_for_weight_conversion)"
        )
    task = config.get("task_type")
    if task not in (None, _TASKS[classifies]):
        raise GuardError(
            f"{folder} is an adapter for {task}, and its base is run as {_TASKS[classifies]}; merge it into its own "
            "base (peft: merge_and_unload) and name the merged folder"
        )
    return Adapter(folder, config, read_header(_weights(folder)))


def _weights(folder: Path) -> Path:
    file = folder / ADAPTER_FILES[1]
    if file.exists() or file.is_symlink():  # what a broken link names is said when it is read
        return file
    old = folder / "adapter_model.bin"
    advice = (
        f"it has {old.name}, which is not read: load it with peft and save it with save_pretrained"
        if old.exists()
        else "download it too (hf download)"
    )
    raise GuardError(f"{folder} lacks {file.name}; {advice}")


def check_language(base: Path, adapter: Path) -> None:
    """See that an adapter that brings a tokenizer or a chat template has the base's, since the base's are used.

    Raises:
        GuardError: they differ, so that its training saw other prompts.
    """
    brings = [name for name in (TOKENIZER_JSON, "chat_template.jinja") if (adapter / name).is_file()]
    for name in brings:
        if what := impostor(adapter / name):
            raise GuardError(f"{adapter / name} {what}")
    if TOKENIZER_JSON not in brings:
        return
    ours, theirs = load_tokenizer(base), load_tokenizer(adapter)
    differs = []
    if ours.get_vocab() != theirs.get_vocab():
        differs.append("tokenizer")
    if theirs.chat_template and ours.chat_template != theirs.chat_template:
        differs.append("chat template")
    if differs:
        raise GuardError(
            f"{adapter} has another {' and '.join(differs)} than its base {base}, so it was trained on other prompts; "
            "name the base that it was trained on, or merge it (peft: merge_and_unload) and save its tokenizer with it"
        )
