"""What else runs the same weights on the same items: peers in one process, each in turns with our engine.

Each peer does the least that yields a label: it reads the two labels' scores after one pass where it can, and writes a
single token where it cannot. CTranslate2 computes in float32 or int8 on a CPU, we in bfloat16; its figure stands here
where it is installed (`pip install '.[peers]'`). What the reference's own loop does is measured in `engine`.
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM, pipeline

from schemas.guards import Mode
from tests.benchmarks.kit.against_bare import planned_batches
from tests.benchmarks.kit.figures import Figure, median_figure
from tests.benchmarks.kit.half_billion import guard_of, left_padded, rendered, seconds_of, stratified_items, write_model
from worker.device.engines.budget import BudgetBook
from worker.device.engines.transformers import TransformersEngine
from worker.guards.base import PromptIds
from worker.guards.libra import LibraGuard

BENCH: Final = "peers"
_ITEMS: Final = 16
_PASSES: Final = 2
_BATCH: Final = 8


def run(*, quick: bool) -> Iterator[Figure]:
    """Rates of our engine and of every peer that is installed, on the device that is found."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory(prefix="libra-bench-") as name:
        folder = write_model(Path(name) / "checkpoint")
        guard = guard_of(folder)
        prompts = rendered(guard, stratified_items(_ITEMS), Mode.SCORE)
        prefix = guard.prefix_ids(Mode.SCORE)
        ours = _ours(folder, device, guard, prompts)
        peers: dict[str, Callable[[], object]] = {
            "sorted, padded loop: one forward of 8, all logits": _padded_loop(folder, device, prompts),
            "transformers pipeline: batches of 8, one new token": _pipeline(folder, device, prompts),
        }
        if importlib.util.find_spec("ctranslate2"):
            for kind in ("float32", "int8"):
                peers[f"CTranslate2, {kind}, cached prefix, one new token"] = _ctranslate2(
                    folder, device, prompts, prefix, kind
                )
        yield from _in_turns(ours, peers, len(prompts), passes=1 if quick else _PASSES)


def _in_turns(
    ours: Callable[[], object], peers: dict[str, Callable[[], object]], items: int, *, passes: int
) -> Iterator[Figure]:
    own: list[float] = []
    for name, peer in peers.items():
        peer()
        rates, ratios = [], []
        for _ in range(passes):
            rates.append(items / seconds_of(peer))
            own.append(items / seconds_of(ours))
            ratios.append(own[-1] / rates[-1])
        yield median_figure(BENCH, name, rates, "items/s")
        yield median_figure(BENCH, f"times faster than: {name}", ratios, "×")
    yield median_figure(BENCH, "this engine beside them", own, "items/s")


def _ours(folder: Path, device: str, guard: LibraGuard, prompts: Sequence[PromptIds]) -> Callable[[], object]:
    engine = TransformersEngine(
        folder,
        device=device,
        dtype="bfloat16",
        prefix_ids=guard.prefix_ids(Mode.SCORE),
        budgets=BudgetBook(folder.parent / "budgets"),
    )
    info = engine.info
    batches = planned_batches(
        prompts,
        max_batch_tokens=info.max_batch_tokens,
        max_batch_items=info.max_batch_items,
        packs=info.packs,
        prefix_tokens=info.prefix_tokens,
    )
    return lambda: [engine.score(batch, guard.label_ids) for batch in batches]


def _padded_loop(folder: Path, device: str, prompts: Sequence[PromptIds]) -> Callable[[], object]:
    model = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(device).eval()
    by_length = sorted(prompts, key=len)

    @torch.inference_mode()
    def judge() -> None:
        for first in range(0, len(by_length), _BATCH):
            ids, mask = left_padded(by_length[first : first + _BATCH], device)
            model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, -1].float().log_softmax(-1).sum()

    return judge


def _pipeline(folder: Path, device: str, prompts: Sequence[PromptIds]) -> Callable[[], object]:
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), padding_side="left")
    tokenizer.pad_token = "<|endoftext|>"
    model = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(device).eval()
    generate = pipeline("text-generation", model=model, tokenizer=tokenizer, device=device)
    texts = [tokenizer.decode(prompt) for prompt in prompts]
    return lambda: generate(texts, batch_size=_BATCH, max_new_tokens=1, do_sample=False, return_full_text=False)


def _ctranslate2(
    folder: Path, device: str, prompts: Sequence[PromptIds], prefix: Sequence[int], kind: str
) -> Callable[[], object]:
    import ctranslate2  # type: ignore[import-not-found]
    from ctranslate2.converters import TransformersConverter  # type: ignore[import-not-found]

    converted = folder.parent / "ctranslate2"
    if not converted.exists():
        TransformersConverter(str(folder)).convert(str(converted))
    words = json.loads((converted / "vocabulary.json").read_text(encoding="utf-8"))
    generator: Any = ctranslate2.Generator(
        str(converted), device=device, compute_type=kind, intra_threads=torch.get_num_threads()
    )
    own = [[words[at] for at in prompt[len(prefix) :]] for prompt in prompts]
    shared = [words[at] for at in prefix]
    return lambda: generator.generate_batch(
        own,
        max_batch_size=1,  # longer batches feed what is beyond the shortest prompt token by token
        max_length=1,
        include_prompt_in_result=False,
        static_prompt=shared,
        return_logits_vocab=True,
    )
