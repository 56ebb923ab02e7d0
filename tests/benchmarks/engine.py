"""The engine against the reference's loop, against its machine's own matrix products, and against a plain forward.

A random-weight model of Qwen2.5-0.5B's shape with Qwen's real vocabulary, real items, Libra's prompt, bfloat16. What is
compared runs in turns in one process. Random weights never end a text early, so that 256 new tokens are an upper bound
for the reference; 64 are the headline.
"""

from __future__ import annotations

import json
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from transformers import Qwen2ForCausalLM

from schemas.guards import Mode
from schemas.messages import ChunkItem
from tests.benchmarks.kit.against_bare import BareRun, fleet_share, planned_batches
from tests.benchmarks.kit.figures import Figure, median_figure
from tests.benchmarks.kit.half_billion import (
    GUARD,
    SHAPE,
    guard_of,
    left_padded,
    rendered,
    seconds_of,
    stratified_items,
    write_model,
)
from tests.benchmarks.kit.rig import rig
from worker.device.engines.budget import BudgetBook
from worker.device.engines.transformers import TransformersEngine
from worker.guards.base import PromptIds
from worker.guards.libra import LibraGuard

BENCH: Final = "engine"
_SLOW_ITEMS: Final = 8
_PASSES: Final = 3
_LOOPS: Final = ((4, 64, 8.0), (4, 256, 20.0), (1, 256, 50.0))
"""The reference's batch size and new tokens, and how many times faster we must be."""


class _Sizes(NamedTuple):
    """How much there is to do: items for the bare engine and for the fleet, rows of the matrix product, how often."""

    items: int
    fleet_items: int
    gemm: int
    gemms: int


_SIZES: Final = {"cpu": _Sizes(64, 128, 2_048, 1), "cuda": _Sizes(1_000, 20_000, 8_192, 10)}
"""A second's work at least, and products that fill the device."""


def run(*, quick: bool) -> Iterator[Figure]:
    """All figures of the engine; `--device cuda` machines run the same by the device found."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory(prefix="libra-bench-") as name:
        folder = write_model(Path(name) / "checkpoint")
        guard = guard_of(folder)
        engine = TransformersEngine(
            folder,
            device=device,
            dtype="bfloat16",
            prefix_ids=guard.prefix_ids(Mode.SCORE),
            budgets=BudgetBook(Path(name) / "budgets"),
        )
        bench = _EngineBench(engine, guard, folder, device)
        yield Figure(BENCH, "token budget found by probing", engine.info.max_batch_tokens, "tokens")
        yield from bench.against_the_reference(passes=1 if quick else _PASSES)
        yield from bench.against_matrix_products(passes=2 if quick else _PASSES)
        yield from bench.against_a_plain_forward()
        yield from bench.in_float32()
        yield from bench.with_fixed_shapes()
        yield from bench.inside_the_fleet(runs=1 if quick else 2)


class _EngineBench:
    """One engine, the reference's model beside it, and the items that both judge."""

    def __init__(self, engine: TransformersEngine, guard: LibraGuard, folder: Path, device: str) -> None:
        self._engine, self._guard, self._folder, self._device = engine, guard, folder, device
        self._sizes = _SIZES[device]
        self._items = stratified_items(self._sizes.items)
        self._prompts = rendered(guard, self._items, Mode.SCORE)
        self._plain = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(device).eval()
        self._linear = [m for m in self._plain.model.modules() if isinstance(m, torch.nn.Linear)]

    # Speed.

    def against_the_reference(self, *, passes: int) -> Iterator[Figure]:
        """HF generate over left-padded batches in file order, as the reference's script does, and we, in turns."""
        slow = rendered(self._guard, stratified_items(_SLOW_ITEMS), Mode.GENERATE)
        for batch, new_tokens, bar in _LOOPS:
            ratios, theirs, ours = [], [], []
            for _ in range(passes if new_tokens == 64 else 1):
                theirs.append(len(slow) / seconds_of(partial(self._reference_loop, slow, batch, new_tokens)))
                ours.append(len(self._prompts) / seconds_of(self._score_all))
                ratios.append(ours[-1] / theirs[-1])
            name = f"reference's loop, batch {batch}, {new_tokens} new tokens"
            yield median_figure(BENCH, f"times faster than the {name}", ratios, "×", at_least=bar)
            yield median_figure(BENCH, name, theirs, "items/s")
            yield median_figure(BENCH, "this engine beside it", ours, "items/s")

    @torch.inference_mode()
    def _reference_loop(self, prompts: Sequence[PromptIds], batch: int, new_tokens: int) -> None:
        for first in range(0, len(prompts), batch):
            ids, mask = left_padded(prompts[first : first + batch], self._device)
            self._plain.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False, pad_token_id=0
            )

    def _score_all(self) -> list[tuple[float, ...]]:
        """Every prompt by the fleet's own planner, in the order of the prompts."""
        found: dict[bytes, tuple[float, ...]] = {}
        for batch in self.batches(self._prompts):
            for prompt, row in zip(batch, self._engine.score(batch, self._guard.label_ids), strict=True):
                found[prompt.tobytes()] = row
        return [found[prompt.tobytes()] for prompt in self._prompts]

    def batches(self, prompts: Sequence[PromptIds], tokens: int | None = None) -> list[list[array[int]]]:
        """As the device process would plan them if all waited at once."""
        info = self._engine.info
        return planned_batches(
            prompts,
            max_batch_tokens=tokens or info.max_batch_tokens,
            max_batch_items=info.max_batch_items,
            packs=info.packs,
            prefix_tokens=info.prefix_tokens,
        )

    def against_matrix_products(self, *, passes: int) -> Iterator[Figure]:
        """Operations on useful tokens a second, of what a large bf16 product reaches in this process right before.

        The product is timed anew before every batch, for the machine's speed changes from second to second.
        """
        shares, rates, padding = [], [], []
        for _ in range(passes):
            possible, seconds = 0.0, 0.0
            with self._counting() as ran:
                for batch in self.batches(self._prompts):
                    peak = max(_product_rate(self._device, self._sizes) for _ in range(3))
                    took_s = seconds_of(partial(self._engine.score, batch, self._guard.label_ids))
                    possible, seconds = possible + peak * took_s, seconds + took_s
            useful = sum(len(prompt) - self._engine.info.prefix_tokens for prompt in self._prompts)
            shares.append(self._operations() / possible)
            rates.append(len(self._prompts) / seconds)
            padding.append(1 - useful / ran[0])
        yield median_figure(
            BENCH, "operations on useful tokens, of the process's own GEMM peak", shares, "", at_least=0.75
        )
        yield median_figure(BENCH, "padding of what ran", padding, "", at_most=0.03)
        yield median_figure(BENCH, "this engine", rates, "items/s")

    def _operations(self) -> float:
        """Multiplications and additions that the prompts need once the shared prefix is known."""
        prefix, layers = self._engine.info.prefix_tokens, SHAPE["num_hidden_layers"]
        own = [len(prompt) - prefix for prompt in self._prompts]
        linear = sum(2 * layer.in_features * layer.out_features for layer in self._linear) * sum(own)
        attention = sum(4 * SHAPE["hidden_size"] * layers * (n * prefix + n * (n + 1) / 2) for n in own)
        head = 2 * SHAPE["hidden_size"] * SHAPE["vocab_size"] * len(own)
        return linear + attention + head

    @contextmanager
    def _counting(self) -> Iterator[list[int]]:
        """Counts the ids that the model is really run on."""
        ran = [0]

        def count(_: Any, __: Any, inputs: dict[str, Any]) -> None:
            ran[0] += inputs["input_ids"].numel()

        handle = self._engine._model.model.register_forward_pre_hook(count, with_kwargs=True)
        try:
            yield ran
        finally:
            handle.remove()

    # Fidelity.

    def against_a_plain_forward(self) -> Iterator[Figure]:
        """Our short cuts against a plain full forward of the same weights, and against other batch sizes of our own."""
        ours = self._score_all()
        plain = self._plain_rows(self._plain, self._prompts)
        distance = _distance(ours, plain)
        yield Figure(BENCH, "largest difference of a log-probability to a plain forward", distance, "", at_most=0.1)
        certain = [at for at, row in enumerate(plain) if abs(row[0] - row[1]) > 2 * distance]
        flips = {at for at in range(len(plain)) if _unsafe(ours[at]) != _unsafe(plain[at])}
        ties = len(flips - set(certain))
        note = f"{len(certain)} of {len(plain)}; of the others, ties for bfloat16, {ties} differ"
        name = "labels that differ from a plain forward's where two labels lie further apart than the rounding"
        yield Figure(BENCH, name, len(flips.intersection(certain)), "", at_most=0, note=note)
        padded = self._plain_rows(self._plain, self._prompts, together=4)
        own = sum(map(_differ, padded, plain))
        yield Figure(BENCH, "labels that differ between the plain forward's own batches of 4 and of 1", own, "")
        yield from self._flips_between_batch_sizes(ours)

    def in_float32(self) -> Iterator[Figure]:
        """The same without rounding to speak of: every label must be the plain forward's."""
        prompts = self._prompts[:: len(self._prompts) // 8]
        engine = self._new_engine("float32", max_batch_tokens=self._engine.info.max_batch_tokens)
        ours = engine.score(prompts, self._guard.label_ids)
        model = Qwen2ForCausalLM.from_pretrained(self._folder, dtype=torch.float32).to(self._device).eval()
        plain = self._plain_rows(model, prompts)
        yield Figure(
            BENCH, "float32: largest difference of a log-probability", _distance(ours, plain), "", at_most=1e-3
        )
        yield Figure(BENCH, "float32: labels that differ", sum(map(_differ, ours, plain)), "", at_most=0)

    @torch.inference_mode()
    def _plain_rows(
        self, model: Qwen2ForCausalLM, prompts: Sequence[PromptIds], *, together: int = 1
    ) -> list[tuple[float, ...]]:
        """Log-probabilities of the labels' first ids by a full forward over left-padded batches."""
        firsts, rows = [label[0] for label in self._guard.label_ids], []
        for first in range(0, len(prompts), together):
            ids, mask = left_padded(prompts[first : first + together], self._device)
            positions = (mask.cumsum(1) - 1).clamp_min(0)
            logits = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[:, -1]
            rows += [tuple(row) for row in logits.float().log_softmax(-1)[:, firsts].tolist()]
        return rows

    def _flips_between_batch_sizes(self, usual: Sequence[tuple[float, ...]]) -> Iterator[Figure]:
        for tokens in (1, 512, 4_096):
            rows = {}
            for batch in self.batches(self._prompts, tokens):
                rows.update(
                    zip(map(array.tobytes, batch), self._engine.score(batch, self._guard.label_ids), strict=True)
                )
            others = [rows[prompt.tobytes()] for prompt in self._prompts]
            flips = sum(_unsafe(a) != _unsafe(b) for a, b in zip(usual, others, strict=True))
            name = "one prompt a batch" if tokens == 1 else f"batches of {tokens:,} tokens"
            yield Figure(BENCH, f"label flip rate, usual batches against {name}", flips / len(usual), "")

    def with_fixed_shapes(self) -> Iterator[Figure]:
        """What `--deterministic` costs, and that it keeps its word."""
        budget = self._engine.info.max_batch_tokens
        fixed = self._new_engine("bfloat16", max_batch_tokens=budget, deterministic=True)
        labels, some = self._guard.label_ids, self._prompts[:16]
        together = fixed.score(some, labels)
        apart = [fixed.score([prompt], labels)[0] for prompt in some[:4]]
        yield Figure(
            BENCH,
            "--deterministic: scores moved by their neighbours",
            sum(a != b for a, b in zip(together, apart, strict=False)),
            "",
            at_most=0,
        )
        rate = len(self._prompts) / seconds_of(lambda: fixed.score(self._prompts, labels))
        usual = len(self._prompts) / seconds_of(self._score_all)
        yield Figure(BENCH, "--deterministic: share of the usual rate", rate / usual, "")

    def _new_engine(self, dtype: str, **options: Any) -> TransformersEngine:
        prefix_ids = self._guard.prefix_ids(Mode.SCORE)
        return TransformersEngine(self._folder, device=self._device, dtype=dtype, prefix_ids=prefix_ids, **options)

    # The fleet.

    def inside_the_fleet(self, *, runs: int) -> Iterator[Figure]:
        """The same engine behind producer, queue, consumer, collector and ledger."""
        items = stratified_items(self._sizes.fleet_items)
        prompts = rendered(self._guard, items, Mode.SCORE)
        budget = str(self._engine.info.max_batch_tokens)
        options = (
            *("--devices", "all", "--checkpoint", str(self._folder), "--dtype", "bfloat16"),
            *("--max-batch-tokens", budget),
        )
        with rig() as found, found.fleet(*options, guard=GUARD, warm_up_items=8):
            source = found.folder / "items.jsonl"
            source.write_text("".join(_record(item) for item in items), encoding="utf-8")
            yield from fleet_share(BENCH, found, source, lambda: self._bare(prompts), guard=GUARD, runs=runs)

    def _bare(self, prompts: Sequence[PromptIds]) -> BareRun:
        batches = self.batches(prompts)

        def judge() -> None:
            for batch in batches:
                self._engine.score(batch, self._guard.label_ids)

        return BareRun(len(prompts), len(batches), seconds_of(judge))


def _record(item: ChunkItem) -> str:
    record = {"id": str(item.seq), "question": item.question, "response": item.response}
    return json.dumps(record, ensure_ascii=False) + "\n"


def _product_rate(device: str, sizes: _Sizes) -> float:
    """Operations a second of large square products in bfloat16, one behind the other."""
    n = sizes.gemm
    a, b = (torch.randn(n, n, device=device).to(torch.bfloat16) for _ in range(2))

    def multiply() -> None:
        for _ in range(sizes.gemms):
            product = a @ b
        product[0, 0].item()  # waits for the device

    return 2 * n**3 * sizes.gemms / seconds_of(multiply)


def _distance(ours: Sequence[tuple[float, ...]], plain: Sequence[tuple[float, ...]]) -> float:
    return max(abs(a - b) for mine, row in zip(ours, plain, strict=True) for a, b in zip(mine, row, strict=True))


def _differ(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return _unsafe(one) != _unsafe(other)


def _unsafe(row: Sequence[float]) -> bool:
    return row[1] > row[0]
