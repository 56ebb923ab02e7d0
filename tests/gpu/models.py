"""Writes random weights of Qwen2.5's 0.5B and 7B in bfloat16, with Qwen's real vocabulary, for the other stages."""

from __future__ import annotations

import time

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from tests.gpu.ground import GIB, Ground, forget
from tests.support.checkpoints import qwen_tokenizer_json, write_checkpoint


def run(ground: Ground) -> None:
    for name in ("half", "seven"):
        began = time.monotonic()
        folder = ground.models / name
        write_checkpoint(folder, qwen_tokenizer_json(), context_tokens=32_768)
        (folder / "model.safetensors").unlink(missing_ok=True)
        torch.manual_seed(0)
        torch.set_default_dtype(torch.bfloat16)
        with torch.device(ground.device):
            model = Qwen2ForCausalLM(Qwen2Config(**ground.shape(name)))
        torch.set_default_dtype(torch.float32)
        model.save_pretrained(folder)
        del model
        forget()
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        ground.check(f"{name} is written", size > 0, gib=round(size / GIB, 2), s=round(time.monotonic() - began, 1))
