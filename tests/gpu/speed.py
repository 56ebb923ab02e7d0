"""Items a second by the size of a batch, kernels and launches of two sizes, and the obvious Hugging Face loop."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch.profiler import ProfilerActivity, profile

from tests.benchmarks.kit.half_billion import left_padded
from tests.gpu.ground import Ground, batches
from worker.device.engines.budget import BudgetBook
from worker.device.engines.transformers import TransformersEngine
from worker.guards.base import PromptIds

BUDGETS: Final = (512, 2_048, 8_192, 16_384, 32_768, 65_536, 131_072)
MOST_BATCHES: Final = 24
LOOP_BATCH: Final = 8


def half(ground: Ground) -> None:
    _measure(ground, "half", ground.some(6_000, 8), ground.some(512, 4))


def seven(ground: Ground) -> None:
    _measure(ground, "seven", ground.some(2_000, 8), ground.some(128, 4))


def _measure(ground: Ground, name: str, count: int, looped: int) -> None:
    engine = ground.engine(name, budgets=BudgetBook(Path(tempfile.mkdtemp(prefix="gpu-"))))
    labels, prefix = ground.guard(name).label_ids, engine.info.prefix_tokens
    prompts = ground.prompts(name, count)
    tokens = sum(len(prompt) - prefix for prompt in prompts)
    ground.say(items=len(prompts), uncached_tokens_an_item=round(tokens / len(prompts)))
    for budget in BUDGETS[:1] if ground.dry else BUDGETS:
        plan = batches(prompts, budget, prefix, engine.info.max_batch_items)
        plan = plan[:: max(1, len(plan) // MOST_BATCHES)]
        try:
            _time(ground, engine, plan, labels, budget)
        except Exception as error:  # noqa: BLE001 - a size that does not fit is a finding, and the others go on
            ground.say(budget=budget, error=f"{type(error).__name__}: {error}"[:200])
    if not ground.dry:
        for size in (156, 16_384):
            _profile(ground, engine, batches(prompts, size, prefix, 1_024)[len(prompts) // 400], labels)
    _loop(ground, engine, prompts[:looped], [label[0] for label in labels])


def _time(
    ground: Ground, engine: TransformersEngine, plan: Sequence[Sequence[PromptIds]], labels: Any, budget: int
) -> None:
    engine.score(plan[len(plan) // 2], labels)
    began, cpu = time.monotonic(), time.thread_time()
    for batch in plan:
        engine.score(batch, labels)
    seconds, cpu_s = time.monotonic() - began, time.thread_time() - cpu
    prefix = engine.info.prefix_tokens
    count, tokens = sum(map(len, plan)), sum(len(prompt) - prefix for batch in plan for prompt in batch)
    ground.say(
        budget=budget,
        items_per_s=round(count / seconds),
        tokens_per_s=round(tokens / seconds),
        ms_a_batch=round(1e3 * seconds / len(plan), 1),
        engine_thread_cpu_ms_a_batch=round(1e3 * cpu_s / len(plan), 1),
    )


def _profile(ground: Ground, engine: TransformersEngine, batch: Sequence[PromptIds], labels: Any) -> None:
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        engine.score(batch, labels)
        torch.cuda.synchronize()
    kernels = [one for one in seen.key_averages() if one.device_type == torch.autograd.DeviceType.CUDA]
    slowest = sorted(kernels, key=lambda one: -one.self_device_time_total)[:8]
    ground.say(
        profiled_items=len(batch),
        gpu_ms=round(sum(one.self_device_time_total for one in kernels) / 1e3, 2),
        launches=sum(one.count for one in kernels),
        slowest_ms={one.key[:60]: round(one.self_device_time_total / 1e3, 2) for one in slowest},
    )


def _loop(ground: Ground, engine: TransformersEngine, prompts: Sequence[PromptIds], firsts: Sequence[int]) -> None:
    """Eight at a time in the file's order, padded on the left, all logits: what people write first."""
    engine._attend_by(engine._own_attention)
    began = time.monotonic()
    with torch.inference_mode():
        for at in range(0, len(prompts), LOOP_BATCH):
            ids, mask = left_padded(prompts[at : at + LOOP_BATCH], ground.device)
            logits = engine._model(input_ids=ids, attention_mask=mask).logits[:, -1]
            logits.float().log_softmax(-1)[:, list(firsts)].cpu()
    ground.say(hugging_face_loop_items_per_s=round(len(prompts) / (time.monotonic() - began), 1))
