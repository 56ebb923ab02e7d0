"""Answers to queries: the grammar's in three manners, or those of writers.

The grammar's manners are voices, not labels: what an answer deserves is for the judges to say.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from producer.curation.rows import Intent, Row, Writer, derived, topic_of, written_by
from producer.curation.synthetic.phrases import Part
from producer.curation.synthetic.speech import Speaker
from schemas.items import Item

Manner = Callable[[Speaker, Intent], str]


def _refusing(speaker: Speaker, _: Intent) -> str:
    return speaker.refusal()


def _complying(speaker: Speaker, intent: Intent) -> str:
    return speaker.help(speaker.harmless) if intent is Intent.HARMLESS else speaker.compliance()


def _neutral(speaker: Speaker, intent: Intent) -> str:
    return speaker.help(speaker.harmless) if intent is Intent.HARMLESS else speaker.redirection()


def _hollow(speaker: Speaker, intent: Intent) -> str:
    return speaker.redirection() if intent is Intent.HARMLESS else speaker.hollow_refusal()


MANNERS: Final[Mapping[str, Manner]] = {
    "refusing": _refusing,
    "complying": _complying,
    "neutral": _neutral,
    "hollow": _hollow,
}


def grammar_responses(queries: Iterable[Row]) -> Iterator[Row]:
    """An answer in each manner; an answer that a query has already is left out."""
    for row in queries:
        said: set[str] = set()
        for manner, answer in MANNERS.items():
            rng = random.Random(f"responses/{row['id']}/{manner}")  # noqa: S311 - reproducible, not a secret
            harm, harmless = row["aims"]
            speaker = Speaker(topic_of(row), rng, Part.ALL, harm=harm, harmless=harmless)
            text = answer(speaker, Intent(row["intent"])).strip()
            if text and text not in said:
                said.add(text)
                yield derived(
                    row, f"{row['id']}-{manner}", generator=f"grammar:{manner}", stage="responses", response=text
                )


def writer_items(queries: Iterable[Row]) -> Iterator[Item]:
    """What a writer is asked: the query itself."""
    return (Item(id=row["id"], response=row["question"]) for row in queries)


def written_responses(
    queries: Iterable[Row], writers: Mapping[Writer, Callable[[Sequence[str]], dict[str, str]]]
) -> Iterator[Row]:
    """Each query with each writer's answer; an empty answer is left out. `writers` give their texts by item."""
    for row in queries:
        for writer, written in writers.items():
            text = written([row["id"]]).get(row["id"], "").strip()
            if text:
                answered = derived(row, f"{row['id']}-{writer.name}", generator="", stage="responses", response=text)
                yield written_by(answered, writer)
