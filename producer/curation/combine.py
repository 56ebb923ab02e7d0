"""Combinations of elements: a sub-category, a harmful aim and a harmless one, a task type, a place, an event."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import asdict

from producer.curation.rows import Provenance, Row
from producer.curation.synthetic import LICENCE, SOURCE
from producer.curation.synthetic.phrases import elements, topics


def combinations(count: int, seed: int) -> Iterator[Row]:
    """So many combinations, sub-categories in turn; the first ones of a longer draw are those of a shorter."""
    kinds, parts = topics(), elements()
    for number in range(count):
        rng = random.Random(f"combine/{seed}/{number}")  # noqa: S311 - reproducible, not a secret
        topic = kinds[number % len(kinds)]
        provenance = Provenance(SOURCE, LICENCE, "elements", "combine", seed=seed)
        yield {
            "id": f"c{seed}-{number}",
            "sub_category": topic.kind.code,
            "harm": rng.choice(topic.behaviours),
            "harmless": rng.choice(topic.benign),
            "word": rng.choice(topic.words),
            "task_type": rng.choice(list(parts.task_types)),
            "place": rng.choice(parts.places),
            "event": rng.choice(parts.events),
            "provenance": asdict(provenance),
        }
