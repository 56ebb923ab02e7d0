"""The engine for classification heads: a checkpoint folder, one forward per batch, one row of classes per prompt."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

import torch
from torch.nn.functional import logsigmoid

from worker.device.engines.base import LoadOptions
from worker.device.engines.fit import classifier_of
from worker.device.engines.loading import check_ids, device_errors, load_model, padded


class ClassifierEngine:
    """One sequence-classification model: softmax over its classes, or a sigmoid each where it is multi-label.

    Its heads are computed in float32, whatever the model's dtype: rounding at the last step would move scores most.
    """

    def __init__(self, checkpoint: Path, *, multi_label: bool | None = None, **options: Unpack[LoadOptions]) -> None:
        """Load the checkpoint: see `load_model`. `multi_label` overrules config.json's `problem_type`."""
        self._model, self.info = load_model(classifier_of(checkpoint), checkpoint, "transformers-classifier", options)
        head_in_float32(self._model)
        config: Any = self._model.config
        self._device = torch.device(self.info.device)
        self._vocabulary = int(self._model.get_input_embeddings().weight.shape[0])
        # Groups of classes that exclude each other; one, but for models with several heads.
        self._groups: tuple[int, ...] | None = getattr(self._model, "head_sizes", None)
        by_config = config.problem_type == "multi_label_classification" or config.num_labels == 1
        self._multi_label = (by_config if multi_label is None else multi_label) and self._groups is None
        pad = config.get_text_config().pad_token_id
        # Heads of our own read where the mask ends, whatever stands behind.
        self._pad = 0 if pad is None and self._groups else pad

    def score(self, prompts: Sequence[array[int]], labels: Sequence[Sequence[int]]) -> list[tuple[float, ...]]:
        """Not with a classifier: always a ValueError."""
        raise ValueError(f"a classifier cannot score {len(labels)} labels after {len(prompts)} prompts")

    def generate(
        self,
        prompts: Sequence[array[int]],
        *,
        max_new_tokens: int,
        stop_ids: Sequence[int],  # noqa: ARG002 - the protocol's signature
        verdict_ids: Sequence[Sequence[int]] = (),  # noqa: ARG002
    ) -> list[tuple[int, ...]]:
        """Not with a classifier: always a ValueError."""
        raise ValueError(f"a classifier cannot write {max_new_tokens} tokens after {len(prompts)} prompts")

    def classify(self, prompts: Sequence[array[int]]) -> list[tuple[float, ...]]:
        """Log-probability of each class, per prompt: len(prompts) x classes."""
        check_ids(prompts, self._vocabulary)
        # Without a padding id a decoder's head cannot find the end of a padded row.
        batches = [list(prompts)] if self._pad is not None else [[prompt] for prompt in prompts]
        found = []
        with device_errors(), torch.inference_mode():
            for batch in batches:
                ids, mask = padded(batch, self._pad or 0)
                inputs = {"input_ids": ids.to(self._device), "attention_mask": mask.to(self._device)}
                found.append(self._model(**inputs).logits)
            logits = torch.cat(found).float()
            groups = torch.split(logits, list(self._groups or logits.shape[-1:]), dim=-1)
            normalised = [logsigmoid(part) if self._multi_label else part.log_softmax(dim=-1) for part in groups]
            table = torch.cat(normalised, dim=-1)
            rows: list[list[float]] = table.double().cpu().tolist()
        if not table.isfinite().all():
            raise ValueError("the model's log-probabilities are not finite")
        return [tuple(row) for row in rows]


def head_in_float32(model: Any) -> None:  # noqa: ANN401 - transformers has no types
    """Have everything behind the base model computed in float32, from its hidden states on."""
    for name, module in model.named_children():
        if name != model.base_model_prefix:
            module.float()
            module.register_forward_pre_hook(_as_float32)


def _as_float32(_: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(one.float() if isinstance(one, torch.Tensor) and one.is_floating_point() else one for one in inputs)
