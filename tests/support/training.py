"""What tests of training start from: a tiny untrained chat model, and rows whose label stands in their words."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer
from transformers import Qwen2ForCausalLM

from tests.support.checkpoints import small_config, small_tokenizer, write_checkpoint
from worker.guards.libra import INSTRUCTION
from worker.training.recipe import Recipe

CONTEXT_TOKENS = 768


def write_base(folder: Path, *, tied: bool = True) -> Path:
    """An untrained Qwen2 with a tokenizer that knows the prompt's words."""
    write_checkpoint(folder, small_tokenizer(whole=re.findall(r"\w+", INSTRUCTION)), context_tokens=CONTEXT_TOKENS)
    torch.manual_seed(0)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    config = small_config(
        tokenizer, CONTEXT_TOKENS, num_key_value_heads=1, initializer_range=0.1, tie_word_embeddings=tied
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


def dialogues(count: int, seed: int, *, source: str = "made up", analysis: bool = True) -> list[dict[str, Any]]:
    """Records as the data pipeline writes them; the unsafe ones say hello, the safe ones speak of cake."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        unsafe = number % 2 == 1
        rows.append(
            {
                "id": f"{source}-{seed}-{number}",
                "question": f"问{seed}-{number}",
                "response": f"{'hello' if unsafe else '蛋糕'} {rng.randrange(1_000)}",
                "label": "不安全" if unsafe else "安全",
                "analyze": ("world" if unsafe else "请问") if analysis else "",
                "source": source,
                "category_name": "",
                "sub_category_name": "",
                "provenance": {
                    "origin": source,
                    "licence": "CC0-1.0",
                    "generator": "tests",
                    "stage": "grammar",
                    "parent_id": None,
                    "seed": seed,
                },
            }
        )
    return rows


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Records as JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def stage_settings(name: str, train: Path, **changes: Any) -> dict[str, Any]:
    """A short stage; `changes` are its own keys."""
    return {
        "name": name,
        "train": [str(train)],
        "dev_share": 0.25,
        "epochs": 2,
        "learning_rate": 1e-2,
        "label_weight": 4,
        "batch_rows": 8,
        "device_rows": 4,
        "evaluate_every_steps": 4,
        **changes,
    }


def write_recipe(folder: Path, base: Path, stages: Sequence[Mapping[str, Any]], **changes: Any) -> Path:
    """A recipe whose checkpoint goes to `folder`/out; `changes` are keys of the recipe."""
    content = {
        "name": "small",
        "base": str(base),
        "out": str(folder / "out"),
        "precision": "fp32",
        "max_tokens": CONTEXT_TOKENS,
        "stages": list(stages),
        **changes,
    }
    Recipe.model_validate(content)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    return path
