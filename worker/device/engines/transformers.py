"""The engine on Hugging Face transformers: a checkpoint folder, one forward per batch, one LM-head row per prompt.

Shapes: n prompts, T the longest, P the shared prefix, H the hidden size, V the vocabulary.
"""

from __future__ import annotations

import hashlib
import platform
from array import array
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any, Final, Unpack

import torch
from transformers import AutoModelForCausalLM, DynamicCache, StoppingCriteria

from infra.log import get_logger
from worker.device.engines.base import LoadOptions
from worker.device.engines.budget import BudgetBook, fastest_budget
from worker.device.engines.cpu import lay_out
from worker.device.engines.loading import TOLERANCE, check_ids, device_errors, load_model
from worker.device.engines.packing import PACKED, Pack, PrefixStates

log = get_logger(__name__)

_PAD: Final = 0
_PROBE_TOKENS: Final = 128
"""Length of the prompts that probe for a budget, beyond the shared prefix."""
_CPU_PROBES: Final = (256, 8_192, 2.0)
_CUDA_PROBES: Final = (2_048, 131_072, 2.0)
"""Smallest and largest budget that is tried, and seconds after which a batch is large enough in any case."""
_FIXED_STEP: Final = 64
"""With fixed shapes, prompts are padded to a multiple of this."""


class TransformersEngine:
    """One causal language model, judged by its next-token probabilities or by what it writes.

    Short cuts are taken only where they matched a plain forward when the model was loaded: prompts packed into one
    row (or padded on the right), the LM head on one hidden state per prompt, and the KV cache of the prefix that
    all prompts share.
    """

    def __init__(
        self,
        checkpoint: Path,
        *,
        prefix_ids: Sequence[int] = (),
        deterministic: bool = False,
        budgets: BudgetBook | None = None,
        **options: Unpack[LoadOptions],
    ) -> None:
        """Load the checkpoint: see `load_model`.

        `deterministic`: batches have fixed shapes, so that no prompt's score depends on its neighbours.
        Without `max_batch_tokens` the budget is looked up in `budgets` or found by trying; without both, a constant.
        """
        name = "transformers-fixed-shapes" if deterministic else "transformers"
        self._model, self.info = load_model(AutoModelForCausalLM, checkpoint, name, options)
        self._device = torch.device(self.info.device)
        self._tolerance = TOLERANCE[getattr(torch, self.info.dtype)]
        self._head = self._model.get_output_embeddings()
        self._vocabulary = int(self._model.get_input_embeddings().weight.shape[0])
        self._own_attention: str = self._model.config._attn_implementation
        self._deterministic = deterministic
        self._packs = self._one_row = False
        self._prefix = array("i")
        self._prefix_states: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._take_short_cuts(array("i", prefix_ids))
        if budgets is not None and options.get("max_batch_tokens") is None and not deterministic:
            hardware = f"{platform.machine()}-{torch.get_num_threads()}"
            if self._device.type == "cuda":
                hardware = torch.cuda.get_device_name(self._device)
            # All that the fastest budget depends on.
            facts = (self.info, hardware, torch.__version__, len(self._prefix))
            key = hashlib.blake2b(repr(facts).encode(), digest_size=8).hexdigest()
            smallest, largest, patience_s = _CUDA_PROBES if self._device.type == "cuda" else _CPU_PROBES
            prompt = self._prefix + self._synthetic(_PROBE_TOKENS)

            def run(tokens: int) -> None:
                with device_errors():
                    # Waits for the device.
                    self._next_logprobs([prompt] * max(1, tokens // _PROBE_TOKENS)).sum().item()

            find = partial(fastest_budget, run, smallest=smallest, largest=largest, patience_s=patience_s)
            self.info = replace(self.info, max_batch_tokens=budgets.recall(key, find))

    def score(self, prompts: Sequence[array[int]], labels: Sequence[Sequence[int]]) -> list[tuple[float, ...]]:
        """Log-probability of each label after each prompt, over the whole vocabulary: n x len(labels).

        Labels are distinguished by their first ids; where two share one, whole labels are scored instead.
        """
        check_ids([*prompts, *labels], self._vocabulary)
        firsts = [label[0] for label in labels]
        with device_errors():
            if len(set(firsts)) == len(firsts):
                table = self._next_logprobs(prompts)[:, firsts]
            else:
                # Per label the sum of the log-probabilities of its ids, one forward for each: (n,).
                columns = []
                for label in labels:
                    steps = []
                    for step, token in enumerate(label):
                        continued = [prompt + array("i", label[:step]) for prompt in prompts]
                        steps.append(self._next_logprobs(continued)[:, token])
                    columns.append(torch.stack(steps).sum(dim=0))
                table = torch.stack(columns, dim=1)
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
        """
        check_ids(prompts, self._vocabulary)
        self._attend_by(self._own_attention)
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
        ended = [list(takewhile(lambda token: token not in stops, row)) for row in rows]
        return [tuple(until_verdict(row, verdict_ids)) for row in ended]

    def classify(self, prompts: Sequence[array[int]]) -> list[tuple[float, ...]]:
        """Not with a causal language model: always a ValueError."""
        raise ValueError(f"a causal language model has no classes for {len(prompts)} prompts")

    # Scores.

    def _next_logprobs(self, prompts: Sequence[array[int]]) -> torch.Tensor:
        """Log-probabilities of the id after each prompt: (n, V), float32."""
        cached = len(self._prefix)
        # At least one id must be left behind the prefix: its hidden state is what is read.
        inside = [
            at
            for at, prompt in enumerate(prompts)
            if cached and len(prompt) > cached and prompt[:cached] == self._prefix
        ]
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

    @torch.inference_mode()
    def _last_logits(self, prompts: Sequence[array[int]], prefix_states: PrefixStates) -> torch.Tensor:
        """Logits after the last id of each prompt, which continue the prefix if there is one: (n, V)."""
        if self._packs:
            # Prompts one after the other in a single row: no work is discarded.
            self._attend_by(PACKED)
            pack = Pack([len(prompt) for prompt in prompts], prefix_states)
            ids = array("i")
            for prompt in prompts:
                ids += prompt
            last = torch.tensor(pack.lengths).cumsum(0) - 1
            packed: torch.Tensor = self._model(
                input_ids=torch.frombuffer(ids, dtype=torch.int32)[None].to(self._device, torch.long),
                position_ids=pack.position_ids(self._device),
                use_cache=False,
                pack=pack,
                logits_to_keep=last.to(self._device),
            ).logits
            return packed[0]
        if not self._deterministic:
            return self._padded_logits(prompts, prefix_states, longest=max(map(len, prompts)))
        # Every forward of a length has the same shape, whatever else is in the batch; free rows hold padding.
        logits: list[torch.Tensor] = [torch.empty(0)] * len(prompts)
        by_length: dict[int, list[int]] = {}
        for at, prompt in enumerate(prompts):
            by_length.setdefault(-(-len(prompt) // _FIXED_STEP) * _FIXED_STEP, []).append(at)
        filler = array("i", [_PAD])
        for length, places in by_length.items():
            rows = max(1, min(self.info.max_batch_items, self.info.max_batch_tokens // length))
            for first in range(0, len(places), rows):
                mine = places[first : first + rows]
                batch = [prompts[at] for at in mine] + [filler] * (rows - len(mine))
                found = self._padded_logits(batch, prefix_states, longest=length)
                for at, row in zip(mine, found, strict=False):
                    logits[at] = row
        return torch.stack(logits)

    def _padded_logits(
        self, prompts: Sequence[array[int]], prefix_states: PrefixStates, *, longest: int
    ) -> torch.Tensor:
        """Padding lies on the right, where causal attention never looks from a real id.

        It needs no mask, and positions simply count on from the prefix.
        """
        self._attend_by(self._own_attention)
        n = len(prompts)
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

    def _attend_by(self, name: str) -> None:
        if self._model.config._attn_implementation != name:
            self._model.set_attn_implementation(name)

    # What is settled when the model is loaded.

    def _take_short_cuts(self, prefix: array[int]) -> None:
        """Switch on what agrees with plain forwards of this very model, on synthetic prompts."""
        check_ids([prefix] if prefix else [], self._vocabulary)
        prompts = [prefix + self._synthetic(tokens) for tokens in (5, 17, 11)]
        with device_errors(), torch.inference_mode():
            plain = (
                torch.cat([self._padded_logits([prompt], [], longest=len(prompt)) for prompt in prompts])
                .float()
                .log_softmax(dim=-1)
            )
            if self._device.type == "cpu":
                lay_out(self._model)
            self._packs = not self._deterministic
            self._packs = self._packs and self._agrees("prompts packed into one row", prompts, plain)
            if not self._packs:
                if not self._agrees("batches padded on the right", prompts, plain):
                    self.info = replace(self.info, max_batch_items=1)
                # Set first: it is what the comparison runs.
                self._one_row = getattr(self._model, "head_alone", True)
                self._one_row = self._one_row and self._agrees("LM head on one row", prompts, plain)
            if prefix:
                self._attend_by(self._own_attention)
                ids = torch.tensor([list(prefix)], device=self._device)
                cache = self._model.base_model(input_ids=ids, use_cache=True).past_key_values
                self._prefix = prefix
                self._prefix_states = [(layer.keys, layer.values) for layer in cache.layers]
                if not self._agrees("shared prefix", prompts, plain):
                    self._prefix, self._prefix_states = array("i"), []
        self.info = replace(self.info, packs=self._packs, prefix_tokens=len(self._prefix))

    def _agrees(self, name: str, prompts: Sequence[array[int]], plain: torch.Tensor) -> bool:
        try:
            mine = self._next_logprobs(prompts)
        except (TypeError, AttributeError, ValueError, RuntimeError, IndexError) as error:
            log.warning("short_cut_off", name=name, error=f"{type(error).__name__}: {error}")
            return False
        distance = float((mine - plain).square().mean().sqrt() / plain.std())
        agrees = distance <= self._tolerance
        if not agrees:
            log.warning("short_cut_off", name=name, distance=distance, allowed=self._tolerance)
        return agrees

    def _synthetic(self, tokens: int) -> array[int]:
        return array("i", [(7919 * step + 31 * tokens) % self._vocabulary for step in range(1, tokens + 1)])


class VerdictKnown(StoppingCriteria):
    """Tells Hugging Face's generate which rows have just reached their end.

    It only sees the newest ids of a row, so it must be asked at each step; `prompt_tokens` is the padded length of
    the prompts, in which nothing is looked for.
    """

    def __init__(self, verdict_ids: Sequence[Sequence[int]], *, prompt_tokens: int, device: torch.device) -> None:
        by_length: dict[int, list[list[int]]] = defaultdict(list)
        for sequence in verdict_ids:
            by_length[len(sequence)].append(list(sequence))
        self._tables = {length: torch.tensor(rows, device=device) for length, rows in by_length.items()}
        self._prompt_tokens = prompt_tokens

    def __call__(self, input_ids: torch.Tensor, scores: object, **_: Any) -> torch.Tensor:  # noqa: ANN401, ARG002
        """Tell for each row if it is at its end: ids of shape (n, tokens) in, (n,) bool out."""
        ended = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        for length, table in self._tables.items():
            if input_ids.shape[1] - self._prompt_tokens >= length:
                newest = input_ids[:, None, -length:]
                ended |= (newest == table).all(dim=-1).any(dim=-1)
        return ended


def until_verdict(row: Sequence[int], verdict_ids: Sequence[Sequence[int]]) -> list[int]:
    """The row up to the end of the sequence of `verdict_ids` that ends first in it; whole if there is none."""
    ids = list(row)
    by_last: dict[int, list[list[int]]] = defaultdict(list)
    for sequence in verdict_ids:
        by_last[sequence[-1]].append(list(sequence))
    for end, last in enumerate(ids, 1):
        if any(ids[max(0, end - len(known)) : end] == known for known in by_last.get(last, ())):
            return ids[:end]
    return ids
