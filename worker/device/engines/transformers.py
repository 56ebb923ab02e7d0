"""The engine on Hugging Face transformers: a checkpoint folder, one forward per batch, one LM-head row per prompt.

Shapes: n prompts, T the longest, P the shared prefix, H the hidden size, V the vocabulary.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.utils import logging as transformers_logging

from infra.errors import GuardError
from infra.log import get_logger
from worker.device.engines.base import DeviceLost, EngineInfo, OutOfMemory
from worker.device.engines.verdict_stop import VerdictKnown, until_verdict

log = get_logger(__name__)

CPU_BUDGET: Final = (2_048, 64)
CUDA_BUDGET: Final = (16_384, 256)
"""Tokens and items of a batch where nothing else is said."""

TOLERANCE: Final = {torch.float32: 1e-4, torch.float16: 0.01, torch.bfloat16: 0.04}
"""How far a short cut may lie from a plain forward: rms of the difference of all log-probabilities, in
standard deviations of the plain ones. Rounding alone was measured at 2e-6, 0.001 and 0.01 on random models
of 3 to 24 layers; a prefix one position off at 1.2 where the attention matters."""

_DIGEST_BLOCKS: Final = 64
_DIGEST_BLOCK_BYTES: Final = 4096
_PAD: Final = 0


class TransformersEngine:
    """One causal language model, judged by its next-token probabilities or by what it writes.

    Two short cuts are taken only where they matched a plain forward when the model was loaded: the LM
    head on one hidden state per prompt, and the KV cache of the prefix that all prompts share.
    """

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
        prefix_ids: Sequence[int] = (),
        max_batch_tokens: int | None = None,
        max_batch_items: int | None = None,
    ) -> None:
        """Load the checkpoint.

        `spread` lets accelerate place the layers over all visible devices, the rest in `offload_folder`.

        Raises:
            GuardError: the folder holds no safetensors, or they cannot be loaded.
            OutOfMemory: the weights do not fit.
        """
        on_cuda = torch.device(device).type == "cuda"
        self._dtype = dtype_of(dtype, on_cuda=on_cuda)
        with device_errors():
            self._model = load_model(
                AutoModelForCausalLM,
                checkpoint,
                dtype=self._dtype,
                device_map="auto" if spread else {"": device},
                offload_folder=offload_folder,
                trust_remote_code=trust_remote_code,
            )
        self._device = torch.device(device)
        self._head = self._model.get_output_embeddings()
        self._vocabulary = int(self._model.get_input_embeddings().weight.shape[0])
        self._one_row = False
        self._prefix = array("i")
        self._prefix_states: list[tuple[torch.Tensor, torch.Tensor]] = []
        tokens, items = CUDA_BUDGET if on_cuda else CPU_BUDGET
        self._info = EngineInfo(
            engine="transformers",
            dtype=str(self._dtype).removeprefix("torch."),
            device=device,
            revision=revision or checkpoint_digest(checkpoint),
            max_batch_tokens=max_batch_tokens or tokens,
            max_batch_items=max_batch_items or items,
            context_tokens=context_tokens_of(self._model.config),
        )
        self._take_short_cuts(array("i", prefix_ids))

    @property
    def info(self) -> EngineInfo:
        """Facts fixed at load time."""
        return self._info

    @property
    def prefix_tokens(self) -> int:
        """Length of the shared prefix whose KV cache is in use; 0: none."""
        return len(self._prefix)

    def score(self, prompts: Sequence[array[int]], labels: Sequence[Sequence[int]]) -> list[tuple[float, ...]]:
        """Log-probability of each label after each prompt, over the whole vocabulary: n x len(labels).

        Labels are told apart by their first ids; where two share one, whole labels are scored instead.

        Raises:
            OutOfMemory: the batch is too large for the device.
            DeviceLost: the process must end.
            ValueError: an id is outside the vocabulary, or the model's answer is not a number.
        """
        self._check_ids([*prompts, *labels])
        firsts = [label[0] for label in labels]
        with device_errors():
            if len(set(firsts)) == len(firsts):
                table = self._next_logprobs(prompts)[:, firsts]
            else:
                table = torch.stack([self._label_logprobs(prompts, label) for label in labels], dim=1)
            rows: list[list[float]] = table.double().cpu().tolist()
        if not table.isfinite().all():
            raise ValueError("the model's log-probabilities are not finite")
        return [tuple(row) for row in rows]

    def generate(
        self,
        prompts: Sequence[array[int]],
        *,
        max_new_tokens: int,
        stop_ids: Sequence[int],
        verdict_ids: Sequence[Sequence[int]] = (),
    ) -> list[tuple[int, ...]]:
        """Greedy continuation of each prompt, without the stop id: Hugging Face's own generate.

        It ends with the first of the sequences `verdict_ids` in it, if any.

        Raises:
            OutOfMemory: the batch is too large for the device.
            DeviceLost: the process must end.
            ValueError: an id is outside the vocabulary.
        """
        self._check_ids(prompts)
        longest = max(len(prompt) for prompt in prompts)
        pad = stop_ids[0] if stop_ids else _PAD
        ids = torch.tensor([[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        stopping = [VerdictKnown(verdict_ids, prompt_tokens=longest, device=self._device)] if verdict_ids else None
        with device_errors(), torch.inference_mode():
            output = self._model.generate(
                input_ids=ids.to(self._device),
                attention_mask=mask.to(self._device),
                do_sample=False,
                num_beams=1,
                max_new_tokens=max_new_tokens,
                eos_token_id=list(stop_ids) or None,
                pad_token_id=pad,
                stopping_criteria=stopping,
            )
            rows: list[list[int]] = output[:, longest:].cpu().tolist()
        stops = set(stop_ids)
        return [tuple(until_verdict(_until(row, stops), verdict_ids)) for row in rows]

    def classify(self, prompts: Sequence[array[int]]) -> list[tuple[float, ...]]:
        """Not with a causal language model.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"a causal language model has no classes for {len(prompts)} prompts")

    # Scores.

    def _next_logprobs(self, prompts: Sequence[array[int]]) -> torch.Tensor:
        """Log-probabilities of the id after each prompt: (n, V), float32."""
        cached = len(self._prefix)
        inside = [at for at, prompt in enumerate(prompts) if cached and self._begins_with_prefix(prompt)]
        outside = sorted(set(range(len(prompts))) - set(inside))
        parts = []
        if inside:
            parts.append(self._last_logits([prompts[at][cached:] for at in inside], self._prefix_states))
        if outside:
            parts.append(self._last_logits([prompts[at] for at in outside], []))
        logits = torch.cat(parts)
        if inside and outside:
            logits = logits[torch.tensor(inside + outside, device=logits.device).argsort()]
        return logits.float().log_softmax(dim=-1)

    def _label_logprobs(self, prompts: Sequence[array[int]], label: Sequence[int]) -> torch.Tensor:
        """Sum of the log-probabilities of a label's ids after each prompt: (n,)."""
        steps = []
        for step, token in enumerate(label):
            continued = [prompt + array("i", label[:step]) for prompt in prompts]
            steps.append(self._next_logprobs(continued)[:, token])
        return torch.stack(steps).sum(dim=0)

    def _begins_with_prefix(self, prompt: array[int]) -> bool:
        # At least one id must be left: its hidden state is what is read.
        return len(prompt) > len(self._prefix) and prompt[: len(self._prefix)] == self._prefix

    @torch.inference_mode()
    def _last_logits(
        self, prompts: Sequence[array[int]], prefix_states: Sequence[tuple[torch.Tensor, torch.Tensor]]
    ) -> torch.Tensor:
        """Logits after the last id of each prompt, which continue the prefix if there is one: (n, V).

        Padding lies on the right, where causal attention never looks from a real id: it needs no mask,
        and positions simply count on from the prefix.
        """
        n, longest = len(prompts), max(len(prompt) for prompt in prompts)
        padded = array("i")
        for prompt in prompts:
            padded += prompt + array("i", [_PAD]) * (longest - len(prompt))
        ids = torch.frombuffer(padded, dtype=torch.int32).reshape(n, longest).to(self._device, torch.long)
        last = torch.tensor([len(prompt) - 1 for prompt in prompts])
        inputs: dict[str, Any] = {"input_ids": ids, "use_cache": bool(prefix_states)}
        if prefix_states:
            inputs["past_key_values"] = DynamicCache(
                [(keys.expand(n, -1, -1, -1), values.expand(n, -1, -1, -1)) for keys, values in prefix_states]
            )
        if not self._one_row:
            logits: torch.Tensor = self._model(**inputs).logits
            return logits[torch.arange(n), last.to(logits.device)]
        hidden = self._model.base_model(**inputs).last_hidden_state
        rows: torch.Tensor = self._head(hidden[torch.arange(n), last.to(hidden.device)])
        return rows

    def _check_ids(self, rows: Sequence[Sequence[int]]) -> None:
        check_ids(rows, self._vocabulary)

    # Short cuts.

    def _take_short_cuts(self, prefix: array[int]) -> None:
        """Switch on what agrees with plain forwards of this very model, on synthetic prompts."""
        self._check_ids([prefix] if prefix else [])
        prompts = [prefix + self._synthetic(tokens) for tokens in (5, 17, 11)]
        with device_errors():
            plain = torch.cat([self._last_logits([prompt], []) for prompt in prompts]).float().log_softmax(dim=-1)
            if not self._agrees("batches padded on the right", prompts, plain):
                self._info = replace(self._info, max_batch_items=1)
            self._one_row = True
            self._one_row = self._agrees("LM head on one row", prompts, plain)
            if prefix:
                self._prefix, self._prefix_states = prefix, self._states(prefix)
                if not self._agrees("shared prefix", prompts, plain):
                    self._prefix, self._prefix_states = array("i"), []

    def _agrees(self, name: str, prompts: Sequence[array[int]], plain: torch.Tensor) -> bool:
        try:
            mine = self._next_logprobs(prompts)
        except (TypeError, AttributeError, ValueError, RuntimeError, IndexError) as error:
            log.warning("short_cut_off", name=name, error=f"{type(error).__name__}: {error}")
            return False
        distance = float((mine - plain).square().mean().sqrt() / plain.std())
        agrees = distance <= TOLERANCE[self._dtype]
        if not agrees:
            log.warning("short_cut_off", name=name, distance=distance, allowed=TOLERANCE[self._dtype])
        return agrees

    @torch.inference_mode()
    def _states(self, prefix: array[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Keys and values of the prefix, per layer: (1, heads, P, head size)."""
        ids = torch.tensor([list(prefix)], device=self._device)
        cache = self._model.base_model(input_ids=ids, use_cache=True).past_key_values
        return [(layer.keys, layer.values) for layer in cache.layers]

    def _synthetic(self, tokens: int) -> array[int]:
        return array("i", [(7919 * step + 31 * tokens) % self._vocabulary for step in range(1, tokens + 1)])


def checkpoint_digest(checkpoint: Path) -> str:
    """16 hex characters that tell checkpoints apart, two trainings of one model too. Fast at any size.

    Covers the config, and of each safetensors file the name, the size and samples spread over the content.

    Raises:
        GuardError: the folder holds no safetensors.
    """
    files = sorted(checkpoint.glob("*.safetensors"))
    if not files:
        raise GuardError(f"{checkpoint} holds no safetensors files")
    digest = hashlib.blake2b(digest_size=8)
    config = checkpoint / "config.json"
    digest.update(config.read_bytes() if config.exists() else b"")
    for path in files:
        size = path.stat().st_size
        digest.update(f"\0{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            for block in range(_DIGEST_BLOCKS):
                file.seek(size * block // _DIGEST_BLOCKS)
                digest.update(file.read(_DIGEST_BLOCK_BYTES))
    return digest.hexdigest()


def load_model(
    auto: Any,  # noqa: ANN401 - transformers has no types
    checkpoint: Path,
    *,
    dtype: torch.dtype,
    device_map: str | dict[str, str],
    offload_folder: Path | None,
    trust_remote_code: bool,
) -> Any:  # noqa: ANN401
    """The checkpoint's model by this auto class, ready to run.

    Raises:
        GuardError: the folder holds no safetensors, or they cannot be loaded.
    """
    if not any(checkpoint.glob("*.safetensors")):
        raise GuardError(f"{checkpoint} holds no safetensors files")
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model: Any = auto.from_pretrained(
            checkpoint,
            dtype=dtype,
            device_map=device_map,
            offload_folder=offload_folder,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            local_files_only=True,
        )
    except (OSError, ValueError) as error:
        raise GuardError(f"cannot load {checkpoint}: {error}") from error
    return model.eval()


def dtype_of(name: str, *, on_cuda: bool) -> torch.dtype:
    """The dtype of this name; auto is bfloat16 on CUDA and float32 elsewhere.

    Raises:
        GuardError: not one that an engine runs in.
    """
    if name == "auto":
        return torch.bfloat16 if on_cuda else torch.float32
    dtype = getattr(torch, name)
    if dtype not in TOLERANCE:
        raise GuardError(f"dtype {name} is none of float32, bfloat16, float16")
    return dtype  # type: ignore[no-any-return]


def context_tokens_of(config: Any) -> int:  # noqa: ANN401 - transformers has no types
    """The longest prompt that the model's positions allow."""
    return int(getattr(config.get_text_config(decoder=True), "max_position_embeddings", 2048))


def check_ids(rows: Sequence[Sequence[int]], vocabulary: int) -> None:
    """On CUDA an id outside the vocabulary is a device-side assert, which costs the whole process.

    Raises:
        ValueError: there is one.
    """
    if any(min(row) < 0 or max(row) >= vocabulary for row in rows):
        raise ValueError(f"an id lies outside the vocabulary of {vocabulary:,}")


def _until(row: list[int], stops: set[int]) -> list[int]:
    """The ids before the first stop id."""
    return row[: next((at for at, token in enumerate(row) if token in stops), len(row))]


@contextmanager
def device_errors() -> Iterator[None]:
    """Torch's errors in the engine's words."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        raise OutOfMemory(str(error)) from error
    except RuntimeError as error:
        if "can't allocate memory" in str(error) or "not enough memory" in str(error):
            raise OutOfMemory(str(error)) from error
        if "CUDA error" in str(error) or "device-side assert" in str(error):
            raise DeviceLost(str(error)) from error
        raise
