"""The engine for classification heads: a checkpoint folder, one forward per batch, one row of classes per prompt."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from worker.device.engines.base import EngineInfo
from worker.device.engines.loading import (
    CPU_BUDGET,
    CUDA_BUDGET,
    check_ids,
    checkpoint_digest,
    context_tokens_of,
    device_errors,
    device_name_of,
    dtype_of,
    load_model,
)


class ClassifierEngine:
    """One sequence-classification model: softmax over its classes, or a sigmoid each where it is multi-label."""

    def __init__(
        self,
        checkpoint: Path,
        *,
        device: str = "cpu",
        dtype: str = "auto",
        spread: bool = False,
        offload_folder: Path | None = None,
        trust_remote_code: bool = False,
        revision: str | None = None,
        max_batch_tokens: int | None = None,
        max_batch_items: int | None = None,
    ) -> None:
        """Load the checkpoint.

        Raises:
            GuardError: the folder holds no safetensors, or they cannot be loaded.
            OutOfMemory: the weights do not fit.
        """
        on_cuda = torch.device(device).type == "cuda"
        torch_dtype = dtype_of(dtype, on_cuda=on_cuda)
        with device_errors():
            self._model = load_model(
                AutoModelForSequenceClassification,
                checkpoint,
                dtype=torch_dtype,
                device_map="auto" if spread else {"": device},
                offload_folder=offload_folder,
                trust_remote_code=trust_remote_code,
            )
        config: Any = self._model.config
        self._device = torch.device(device)
        self._vocabulary = int(self._model.get_input_embeddings().weight.shape[0])
        self._multi_label = config.problem_type == "multi_label_classification" or config.num_labels == 1
        self._pad = config.get_text_config().pad_token_id
        tokens, items = CUDA_BUDGET if on_cuda else CPU_BUDGET
        self._info = EngineInfo(
            engine="transformers-classifier",
            dtype=str(torch_dtype).removeprefix("torch."),
            device=device,
            device_name=device_name_of(device),
            revision=revision or checkpoint_digest(checkpoint),
            max_batch_tokens=max_batch_tokens or tokens,
            max_batch_items=max_batch_items or items,
            context_tokens=context_tokens_of(config),
        )

    @property
    def info(self) -> EngineInfo:
        """Facts fixed at load time."""
        return self._info

    def score(self, prompts: Sequence[array[int]], labels: Sequence[Sequence[int]]) -> list[tuple[float, ...]]:
        """Not with a classifier.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"a classifier cannot score {len(labels)} labels after {len(prompts)} prompts")

    def generate(
        self,
        prompts: Sequence[array[int]],
        *,
        max_new_tokens: int,
        stop_ids: Sequence[int],  # noqa: ARG002 - the protocol's signature
        verdict_ids: Sequence[Sequence[int]] = (),  # noqa: ARG002
    ) -> list[tuple[int, ...]]:
        """Not with a classifier.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"a classifier cannot write {max_new_tokens} tokens after {len(prompts)} prompts")

    def classify(self, prompts: Sequence[array[int]]) -> list[tuple[float, ...]]:
        """Log-probability of each class, per prompt.

        Raises:
            OutOfMemory: the batch is too large for the device.
            DeviceLost: the process must end.
            ValueError: an id is outside the vocabulary, or the model's answer is not a number.
        """
        check_ids(prompts, self._vocabulary)
        # Without a padding id a decoder's head cannot find the end of a padded row.
        batches = [list(prompts)] if self._pad is not None else [[prompt] for prompt in prompts]
        with device_errors(), torch.inference_mode():
            logits = torch.cat([self._logits(batch) for batch in batches]).float()
            table = torch.nn.functional.logsigmoid(logits) if self._multi_label else logits.log_softmax(dim=-1)
            rows: list[list[float]] = table.double().cpu().tolist()
        if not table.isfinite().all():
            raise ValueError("the model's log-probabilities are not finite")
        return [tuple(row) for row in rows]

    def _logits(self, prompts: Sequence[array[int]]) -> torch.Tensor:
        longest, pad = max(map(len, prompts)), self._pad or 0
        ids = torch.tensor([list(prompt) + [pad] * (longest - len(prompt)) for prompt in prompts])
        mask = torch.tensor([[1] * len(prompt) + [0] * (longest - len(prompt)) for prompt in prompts])
        logits: torch.Tensor = self._model(input_ids=ids.to(self._device), attention_mask=mask.to(self._device)).logits
        return logits
