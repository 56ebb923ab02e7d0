"""Scores are the CPU's in float32, packed and behind the prefix, in every type; a lost context is named."""

from __future__ import annotations

import contextlib
from array import array

import torch

from tests.gpu.ground import Ground, forget
from worker.device.engines.base import DeviceLost
from worker.device.engines.loading import device_errors

ALLOWED = {"float32": 2e-3, "bfloat16": 0.15, "float16": 0.03}
"""Largest difference of a label's log-probability; of bfloat16, 0.025 was measured on a CPU."""


def run(ground: Ground) -> None:
    labels = ground.guard("half").label_ids
    few = ground.some(24, 3)
    prompts = ground.prompts("half", few)
    prompts += [array("i", range(5, 5 + n)) for n in (1, 2, ground.some(700, 70))]
    long = array("i", [(7 * at) % 90_000 for at in range(ground.some(6_000, 100))])
    prompts.append(prompts[0][:131] + long)
    plain = ground.engine("half", device="cpu", dtype="float32")
    truth = torch.tensor([plain.score([prompt], labels)[0] for prompt in prompts])
    del plain
    for dtype, allowed in ALLOWED.items():
        engine = ground.engine("half", dtype=dtype, max_batch_tokens=65_536)
        got = torch.tensor(engine.score(prompts, labels))
        alone = torch.tensor([engine.score([prompt], labels)[0] for prompt in prompts])
        worst = float((got - truth).abs().max())
        decided = (truth[:, 0] - truth[:, 1]).abs() > 2 * worst
        flips = int((((got[:, 0] > got[:, 1]) != (truth[:, 0] > truth[:, 1])) & decided).sum())
        ground.check(
            f"{dtype}: scores are the CPU's in float32",
            worst <= allowed and not flips,
            worst=worst,
            flips=flips,
            batch_against_alone=float((got - alone).abs().max()),
        )
        ground.check(f"{dtype}: packed, prefix cached", engine.info.packs and engine.info.prefix_tokens > 0)
        del engine
        forget()
    fixed = ground.engine("half", deterministic=True)
    one, many = fixed.score(prompts[:1], labels), fixed.score(prompts[:few], labels)
    ground.check("deterministic: neighbours move nothing", one[0] == many[0])
    if not ground.dry:
        _loses_its_context(ground)


def _loses_its_context(ground: Ground) -> None:
    """Last: this process's device is lost from then on."""
    got = "nothing"
    with contextlib.suppress(DeviceLost):
        try:
            with device_errors():
                torch.zeros(4, device=ground.device)[torch.tensor([9], device=ground.device)].cpu()
        except DeviceLost as error:
            got = "DeviceLost"
            ground.say(said=str(error)[:100])
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is called instead is the finding
            got = type(error).__name__
    ground.check("a device-side assert is a lost device", got == "DeviceLost", got=got)
