"""The engine on Hugging Face transformers: a checkpoint folder, one forward per batch, one LM-head row per prompt.

Shapes: n prompts, T the longest, P the shared prefix, H the hidden size, V the vocabulary.
"""

from __future__ import annotations

import hashlib
import platform
from array import array
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any, Final, NamedTuple, Unpack

import torch
from accelerate.utils import align_module_device
from transformers import AutoModelForCausalLM, DynamicCache, StoppingCriteria

from infra.log import get_logger
from worker.device.engines.base import LoadOptions
from worker.device.engines.budget import BudgetBook, fastest_budget
from worker.device.engines.cpu import lay_out
from worker.device.engines.loading import TOLERANCE, check_ids, device_errors, flat, load_model, padded
from worker.device.engines.norms import fuse_norms
from worker.device.engines.packing import PACKED, Pack, PrefixStates, send

log = get_logger(__name__)

_PAD: Final = 0
_PROBE_TOKENS: Final = 128
"""Length of the prompts that probe for a budget, beyond the shared prefix."""
_CPU_PROBES: Final = (256, 8_192, 2.0)
_CUDA_PROBES: Final = (2_048, 131_072, 2.0)
"""Smallest and largest budget that is tried, and seconds after which a batch is large enough in any case."""
_FINITE_TOKENS: Final = 256
_KEYS_SHARE: Final = 0.5
"""Part of the free memory for keys and values of a batch that writes: the other half is for its activations, and for
the copies that grow with each new token."""
_FIXED_STEP: Final = 64
"""With fixed shapes, prompts are padded to a multiple of this."""


class _LabelRows(NamedTuple):
    """Ids of labels (L,), and their rows of the head in float32: (L, H) and (L,), where the head computes."""

    ids: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor


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
        self._vocabulary = int(self._model.get_input_embeddings().weight.shape[0])
        self._device = torch.device(self.info.device)
        if self.info.dtype == "float16" and options.get("dtype", "auto") == "auto" and not self._is_finite():
            log.warning("float16_overflows", checkpoint=str(checkpoint), instead="float32")
            del self._model
            options["dtype"] = "float32"
            self._model, self.info = load_model(AutoModelForCausalLM, checkpoint, name, options)
        self._tolerance = TOLERANCE[getattr(torch, self.info.dtype)]
        self._head = self._model.get_output_embeddings()
        self._asked: tuple[int, ...] = ()
        self._watch_head()
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
        if self._device.type == "cuda":
            self.info = replace(
                self.info,
                overlaps=not deterministic,
                max_generate_tokens=min(self.info.max_batch_tokens, self._tokens_in_memory()),
            )

    def score(self, prompts: Sequence[array[int]], labels: Sequence[Sequence[int]]) -> list[tuple[float, ...]]:
        """Log-probability of each label after each prompt, over the whole vocabulary: n x len(labels).

        Labels are distinguished by their first ids; where two share one, whole labels are scored instead.
        """
        return self.launch(prompts, labels)()

    def launch(
        self, prompts: Sequence[array[int]], labels: Sequence[Sequence[int]]
    ) -> Callable[[], list[tuple[float, ...]]]:
        """Begin `score`. On CUDA nothing here waits for the device; on a CPU it is done when this returns."""
        check_ids([*prompts, *labels], self._vocabulary)
        with device_errors():
            table = self._label_logprobs(prompts, labels)
            here = table
            arrived: torch.cuda.Event | None = None
            if table.is_cuda:
                here = torch.empty(table.shape, dtype=table.dtype, pin_memory=True)
                here.copy_(table, non_blocking=True)
                arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
                arrived.record()

        def read() -> list[tuple[float, ...]]:
            with device_errors():
                if arrived is not None:
                    arrived.synchronize()
                rows: list[list[float]] = here.double().tolist()
            if not here.isfinite().all():
                raise ValueError("the model's log-probabilities are not finite")
            return [tuple(row) for row in rows]

        return read

    def _label_logprobs(self, prompts: Sequence[array[int]], labels: Sequence[Sequence[int]]) -> torch.Tensor:
        """The table of `score`, on the device: (n, labels)."""
        firsts = tuple(label[0] for label in labels)
        if len(set(firsts)) == len(firsts):
            rows = self._next_logprobs(prompts, firsts)
            return rows.index_select(1, send(torch.tensor(firsts), rows.device))
        # Per label the sum of the log-probabilities of its ids, one forward for each: (n,).
        columns = []
        for label in labels:
            steps = []
            for step, token in enumerate(label):
                continued = [prompt + array("i", label[:step]) for prompt in prompts]
                steps.append(self._next_logprobs(continued, (token,))[:, token])
            columns.append(torch.stack(steps).sum(dim=0))
        return torch.stack(columns, dim=1)

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
        ids, mask = padded(prompts, pad, left=True)
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

    def _next_logprobs(self, prompts: Sequence[array[int]], asked: Sequence[int] = ()) -> torch.Tensor:
        """Log-probabilities of the id after each prompt: (n, V), float32; exact for the ids that are `asked` for."""
        self._asked = tuple(asked)
        try:
            return self._rough_or_exact(prompts)
        finally:
            self._asked = ()

    def _rough_or_exact(self, prompts: Sequence[array[int]]) -> torch.Tensor:
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
            logits = logits[send(torch.tensor(inside + outside).argsort(), logits.device)]
        return logits.float().log_softmax(dim=-1)

    def _watch_head(self) -> None:
        """Decide what goes into the model's head and mend what comes out; the rest the model does as it always does."""
        self._label_rows: dict[tuple[int, ...], _LabelRows] = {}
        self._kept: torch.Tensor | None = None
        self._head_alone: bool = getattr(self._model, "head_alone", True)
        if isinstance(self._head, torch.nn.Module):
            self._head.register_forward_pre_hook(self._keep)
        if isinstance(self._head, torch.nn.Linear):
            self._head.register_forward_hook(self._sharpen)

    def _rows_of(self, asked: tuple[int, ...]) -> _LabelRows:
        """The labels' rows of the head, cut out once."""
        found = self._label_rows.get(asked)
        if found is None:
            with align_module_device(self._head):  # where accelerate keeps the weights elsewhere
                weight, bias = self._head.weight, getattr(self._head, "bias", None)
                ids = torch.tensor(asked, device=weight.device)
                rows = weight[ids].detach().float()
                offsets = torch.zeros_like(rows[:, 0]) if bias is None else bias[ids].detach().float()
            on = self._head_device(ids.device)
            found = self._label_rows[asked] = _LabelRows(ids.to(on), rows.to(on), offsets.to(on))
        return found

    def _head_device(self, home: torch.device) -> torch.device:
        """Where the head computes: beside its weights, or where accelerate takes them to."""
        on = getattr(getattr(self._head, "_hf_hook", None), "execution_device", None)
        return home if on is None else torch.device("cuda", on) if isinstance(on, int) else torch.device(on)

    def _keep(self, _: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        """Give the head the hidden states that are read, and no others; they lie where the last layer does."""
        if self._kept is None:
            return None
        return (inputs[0][:, send(self._kept, inputs[0].device)], *inputs[1:])

    def _sharpen(self, _: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> object:
        """Compute the labels' logits in float32: bfloat16 rounds those of 16 to 32 to eighths, and ties become safe."""
        if not self._asked:
            return None
        labels = self._rows_of(self._asked)
        exact = inputs[0].float() @ labels.weight.T + labels.bias
        return output.float().index_copy_(-1, labels.ids, exact)

    @torch.inference_mode()
    def _last_logits(self, prompts: Sequence[array[int]], prefix_states: PrefixStates) -> torch.Tensor:
        """Logits after the last id of each prompt, which continue the prefix if there is one: (n, V)."""
        if self._packs:
            # Prompts one after the other in a single row: no work is discarded.
            self._attend_by(PACKED)
            pack = Pack([len(prompt) for prompt in prompts], prefix_states)
            last = pack.last()
            self._kept = last if self._head_alone else None
            # A model whose logits are more than its head's picks the rows itself.
            kept = {} if self._head_alone else {"logits_to_keep": send(last, self._device)}
            try:
                packed: torch.Tensor = self._model(
                    input_ids=send(flat(prompts), self._device).long()[None],
                    position_ids=pack.position_ids(self._device),
                    use_cache=False,
                    pack=pack,
                    **kept,
                ).logits
            finally:
                self._kept = None
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
        filled = array("i")
        for prompt in prompts:
            filled += prompt + array("i", [_PAD]) * (longest - len(prompt))
        ids = torch.frombuffer(filled, dtype=torch.int32).reshape(n, longest).to(self._device, torch.long)
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
            else:
                fuse_norms(self._model)
            self._packs = not self._deterministic
            self._packs = self._packs and self._agrees("prompts packed into one row", prompts, plain)
            if not self._packs:
                if not self._agrees("batches padded on the right", prompts, plain):
                    self.info = replace(self.info, max_batch_items=1)
                # Set first: it is what the comparison runs.
                self._one_row = self._head_alone
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
            with device_errors():  # a device that is full or lost says nothing about a short cut
                mine = self._next_logprobs(prompts)
        except (TypeError, AttributeError, ValueError, RuntimeError, IndexError) as error:
            log.warning("short_cut_off", name=name, error=f"{type(error).__name__}: {error}")
            return False
        distance = float((mine - plain).square().mean().sqrt() / plain.std())
        agrees = distance <= self._tolerance
        if not agrees:
            log.warning("short_cut_off", name=name, distance=distance, allowed=self._tolerance)
        return agrees

    @torch.inference_mode()
    def _is_finite(self) -> bool:
        """Whether a plain forward of a longish prompt overflows nowhere: float16 ends at 65,504."""
        ids = torch.tensor([list(self._synthetic(_FINITE_TOKENS))], device=self._device)
        with device_errors():
            return bool(self._model(input_ids=ids, use_cache=False).logits.isfinite().all())

    def _tokens_in_memory(self) -> int:
        """Tokens whose keys and values fit into a part of the memory that is free now."""
        config = self._model.config.get_text_config(decoder=True)
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        key_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        a_token: int = 2 * config.num_hidden_layers * key_heads * size * getattr(torch, self.info.dtype).itemsize
        free, _ = torch.cuda.mem_get_info(self._device)
        return max(1, int(_KEYS_SHARE * free) // a_token)

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
