"""Rows of our own wording against the shortcuts in the public sets. Classifier-level: no working instructions.

In JADE most safe answers refuse and unsafe ones are longer. The grammar writes the opposite: safe answers that help
without refusing, long ones too, safe texts about dangerous words; unsafe answers that begin with a refusal and then
comply, short ones too. What the unsafe ones "instruct" is empty talk: it has the shape of compliance and no content.
"""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache
from importlib.resources import files
from typing import Any, Final

import yaml

from schemas.items import Item, Label
from worker.training.samples import Sample

SOURCE: Final = "libra-fleet/hard-negatives"


@cache
def _phrases() -> dict[str, Any]:
    place = files("recipes.libra_tiny") / "data" / "hard_negatives.yaml"
    content: dict[str, Any] = yaml.safe_load(place.read_text(encoding="utf-8"))
    return content


def _steps(rng: random.Random, phrases: list[str], count: int) -> str:
    chosen = rng.sample(phrases, min(count, len(phrases)))
    style = rng.randrange(3)
    if style == 0:
        return "，".join(chosen) + "。"
    if style == 1:
        return "\n".join(f"{n}. {phrase}。" for n, phrase in enumerate(chosen, 1))
    words = ("首先", "其次", "然后", "接着", "再者", "最后")
    return "，".join(f"{words[min(n, 5)]}{phrase}" for n, phrase in enumerate(chosen)) + "。"


def _helpful(rng: random.Random) -> tuple[str, str]:
    """A question and a helpful answer about something harmless."""
    said = _phrases()
    topic = rng.choice(said["everyday"])
    question = rng.choice((f"怎样{topic}？", f"我想{topic}，有什么建议吗？", f"请告诉我如何{topic}。", ""))
    count = rng.choice((1, 2, 4, 6, 9, 14, 18))
    steps = _steps(rng, said["help"], count)
    opening = rng.choice(said["open_safe"]) + rng.choice((f"想要{topic}，", f"{topic}时，", ""))
    return question, opening + steps + rng.choice(said["close_safe"])


def _educational(rng: random.Random) -> tuple[str, str]:
    said = _phrases()
    danger, _ = rng.choice(said["danger"])
    sentences = rng.sample(said["educate"], rng.choice((1, 1, 2, 4, 6)))
    question = rng.choice(said["ask_educate"]).format(x=danger)
    return question, "".join(sentences).format(x=danger)


def _refusal(rng: random.Random) -> tuple[str, str]:
    said = _phrases()
    danger, _ = rng.choice(said["danger"])
    more = "".join(rng.sample(said["refuse_more"], rng.choice((0, 1, 2, 4, 6))))
    return rng.choice(said["ask_harm"]).format(x=danger), rng.choice(said["refuse"]).format(x=danger) + more


def _compliance(rng: random.Random, *, refuse_first: bool) -> tuple[str, str, str]:
    """A harmful question, a complying answer, and the category."""
    said = _phrases()
    danger, category = rng.choice(said["danger"])
    opening = rng.choice(said["comply_open"])
    if refuse_first:
        more = "".join(rng.sample(said["refuse_more"], rng.choice((0, 0, 1, 2))))
        opening = rng.choice(said["refuse"]) + more + rng.choice(said["turn"]) + opening
    text = opening.format(x=danger) + _steps(rng, said["comply"], rng.choice((1, 1, 2, 3, 5, 8)))
    return rng.choice(said["ask_harm"]).format(x=danger), text + rng.choice(said["comply_close"]), category


def _sample(number: int, label: Label, question: str, response: str, category: str = "") -> Sample:
    item = Item(
        id=f"hard-{number}", source=SOURCE, category=category, question=question, response=response, truth=label
    )
    return Sample(item, label, origin=SOURCE)


def hard_negatives(count: int, seed: int) -> list[Sample]:
    """As many safe as unsafe samples (`count` in all, rounded down to even), the same ones for the same seed."""
    rng = random.Random(seed)  # noqa: S311 - reproducible text, not a secret
    samples = []
    for number in range(0, count // 2 * 2, 2):
        safe = (_helpful, _educational, _refusal)[number // 2 % 3](rng)
        unsafe = _compliance(rng, refuse_first=number // 2 % 3 != 2)
        samples += [_sample(number, Label.SAFE, *safe), _sample(number + 1, Label.UNSAFE, *unsafe)]
    return samples


def disguise(sample: Sample, seed: int) -> Sample:
    """A variant of a public row that breaks a shortcut: a violating answer behind a refusal, a safe one made longer."""
    rng = random.Random(f"{seed}/{sample.item.id}")  # noqa: S311 - reproducible text, not a secret
    said, response = _phrases(), sample.item.response
    if sample.label is Label.UNSAFE:
        response = rng.choice(said["refuse"]).format(x="这个") + rng.choice(said["turn"]) + response
    else:
        response += "".join(rng.sample(said["refuse_more"], 3)) + _helpful(rng)[1]
    return replace(sample, item=sample.item.model_copy(update={"response": response}))
