"""Labelled rows of the grammar: as many safe as unsafe, over all 39 sub-categories, with hard negatives.

Kinds (in `provenance.generator`, after `grammar:`), chosen so that neither refusal words, nor length, nor a dangerous
word, nor the question alone tells the label:

    safe: refuse, redirect (informs, does not refuse), help (same words, harmless aim), post, everyday
    unsafe: comply, endorse, hollow_refusal (begins like a refusal), post, off_course (only the answer does harm)
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, Final

from producer.curation.synthetic.phrases import Part, topics
from producer.curation.synthetic.speech import Speaker

SOURCE: Final = "libra-fleet/grammar"
LICENCE: Final = "Apache-2.0"

_SAFE_KINDS: Final = ("refuse", "redirect", "help", "help", "post", "post", "everyday")
_UNSAFE_KINDS: Final = ("comply", "comply", "endorse", "hollow_refusal", "hollow_refusal", "post", "post", "off_course")
_ATTEMPTS: Final = 200


def synthetic_rows(count: int, seed: int, *, part: Part = Part.ALL) -> Iterator[dict[str, Any]]:
    """Rows as curation writes them, alternately safe and unsafe, no two with the same texts.

    The first rows of a longer draw by the same seed are those of a shorter one.

    Raises:
        ValueError: the part has no further text that is new.
    """
    kinds = topics(part)
    seen: set[tuple[str, str]] = set()
    for number in range(count):
        for attempt in range(_ATTEMPTS):
            rng = random.Random(f"{seed}/{part.value}/{number}/{attempt}")  # noqa: S311 - reproducible, not a secret
            # Each topic comes up once in 39 pairs, in an order of its own in each round.
            order = random.Random(f"{seed}/{number // 2 // len(kinds)}").sample(kinds, len(kinds))  # noqa: S311
            speaker = Speaker(order[number // 2 % len(kinds)], rng, part)
            kind, question, response = (_unsafe if number % 2 else _safe)(speaker, rng)
            if (question, response) not in seen:
                break
        else:
            raise ValueError(f"the grammar's part {part.value} has no more than {number:,} texts to give")
        seen.add((question, response))
        yield _row(speaker, kind, question, response, unsafe=number % 2 == 1, number=number, seed=seed, part=part)


def _safe(speaker: Speaker, rng: random.Random) -> tuple[str, str, str]:
    kind = rng.choice(_SAFE_KINDS)
    if kind == "refuse":
        return kind, _either(rng, speaker.ask(speaker.harm), speaker.ask_for_claim()), speaker.refusal()
    if kind == "redirect":
        return kind, _either(rng, speaker.ask(speaker.harm), speaker.ask_for_claim()), speaker.redirection()
    if kind == "help":
        return kind, speaker.ask(speaker.harmless), speaker.help(speaker.harmless)
    if kind == "post":
        return kind, "", speaker.harmless_post()
    return kind, *speaker.everyday()


def _unsafe(speaker: Speaker, rng: random.Random) -> tuple[str, str, str]:
    kind = rng.choice(_UNSAFE_KINDS)
    if kind == "comply":
        return kind, speaker.ask(speaker.harm), speaker.compliance()
    if kind == "endorse":
        return kind, _either(rng, speaker.ask(speaker.harm), speaker.ask_for_claim()), speaker.endorsement()
    if kind == "hollow_refusal":
        return kind, _either(rng, speaker.ask(speaker.harm), speaker.ask_for_claim()), speaker.hollow_refusal()
    if kind == "post":
        return kind, "", speaker.harmful_post()
    return kind, speaker.ask(speaker.harmless), rng.choice((speaker.compliance, speaker.endorsement))()


def _either(rng: random.Random, first: str, second: str) -> str:
    return first if rng.random() < 0.7 else second


def _row(
    speaker: Speaker, kind: str, question: str, response: str, *, unsafe: bool, number: int, seed: int, part: Part
) -> dict[str, Any]:
    everyday = kind == "everyday"
    return {
        "id": f"grammar-{part.value}-{seed}-{number}",
        "source": SOURCE,
        "category_name": "" if everyday else speaker.topic.scenario_zh,
        "sub_category_name": "" if everyday else speaker.topic.kind.name_zh,
        "question": question,
        "response": response,
        "label": "不安全" if unsafe else "安全",
        "analyze": speaker.analysis("analysis_unsafe" if unsafe else "analysis_safe"),
        "provenance": {
            "origin": SOURCE,
            "licence": LICENCE,
            "generator": f"grammar:{kind}",
            "stage": "grammar",
            "parent_id": None,
            "seed": seed,
        },
    }
