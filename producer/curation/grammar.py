"""Text without a model: questions, answers, posts and labelled rows from phrases written for this project.

Phrases name a harm at the level a classifier needs; what an unsafe answer "instructs" is empty talk. Each of the
taxonomy's sub-categories has its own, split into what is trained on and what is held out.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib.resources import files
from typing import Any, Final

import yaml

from schemas.taxonomy import SCENARIOS, SubCategory

SOURCE: Final = "libra-fleet/grammar"
LICENCE: Final = "Apache-2.0"

_HELD_OUT_EVERY: Final = 3
_STEP_WORDS: Final = ("首先", "其次", "然后", "接着", "再者", "最后")
_SAFE_KINDS: Final = ("refuse", "redirect", "help", "help", "post", "post", "everyday")
_UNSAFE_KINDS: Final = ("comply", "comply", "endorse", "hollow_refusal", "hollow_refusal", "post", "post", "off_course")
_ATTEMPTS: Final = 200


class Part(StrEnum):
    """The phrases that may be used: rows of `train` and of `held_out` share none, so that one tests the other."""

    ALL = "all"
    TRAIN = "train"
    HELD_OUT = "held_out"


@dataclass(frozen=True)
class Topic:
    """One sub-category's phrases: harmful aims, words of both sides, harmless aims, safe and harmful sentences."""

    kind: SubCategory
    scenario_zh: str
    behaviours: tuple[str, ...]
    words: tuple[str, ...]
    benign: tuple[str, ...]
    facts: tuple[str, ...]
    claims: tuple[str, ...]


@dataclass(frozen=True)
class Elements:
    """The parts of a query besides its aim; task types by name, each with ways to ask."""

    task_types: Mapping[str, tuple[str, ...]]
    places: tuple[str, ...]
    events: tuple[str, ...]
    settings: tuple[str, ...]


@cache
def topics(part: Part = Part.ALL) -> tuple[Topic, ...]:
    """All 39 sub-categories, in the taxonomy's order, with the phrases of a part."""
    found = []
    for scenario in SCENARIOS:
        phrases = read_phrases(scenario.code)
        for kind in scenario.subcategories:
            own = {name: _of_part(listed, part) for name, listed in phrases[kind.code].items()}
            found.append(Topic(kind, scenario.name_zh, **own))
    return tuple(found)


@cache
def elements() -> Elements:
    """Task types, places, events and settings."""
    phrases = read_phrases("elements")
    ways = {name: tuple(asked) for name, asked in phrases.pop("task_types").items()}
    return Elements(task_types=ways, **{name: tuple(listed) for name, listed in phrases.items()})


@cache
def frames(part: Part = Part.ALL) -> Mapping[str, tuple[str, ...]]:
    """The talk around aims and sentences, by its purpose."""
    return {name: _of_part(listed, part) for name, listed in read_phrases("frames").items()}


def read_phrases(name: str) -> dict[str, Any]:
    """The content of phrases/NAME.yaml."""
    place = files("producer.curation") / "phrases" / f"{name}.yaml"
    content: dict[str, Any] = yaml.safe_load(place.read_text(encoding="utf-8"))
    return content


def _of_part(phrases: list[str], part: Part) -> tuple[str, ...]:
    """Every third phrase is held out; an empty one means that nothing may stand there, and belongs to both parts."""
    if part is Part.ALL:
        return tuple(phrases)
    wanted = part is Part.HELD_OUT
    return tuple(
        phrase
        for at, phrase in enumerate(phrases)
        if not phrase or (at % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1) == wanted
    )


class Speaker:
    """Speaks about one topic with the phrases of one part; the same draws give the same text.

    Each method says one kind of thing. `harm` and `harmless` are its aims, drawn where they are not given.
    """

    def __init__(self, topic: Topic, rng: random.Random, part: Part, *, harm: str = "", harmless: str = "") -> None:
        self.topic = topic
        self._rng = rng
        self._frames = frames(part)
        self.harm = harm or rng.choice(topic.behaviours)
        self.harmless = harmless or rng.choice(topic.benign)
        self._filled = {
            "w": rng.choice(topic.words),
            "p": rng.choice(elements().places),
            "e": rng.choice(elements().events),
            "c": rng.choice(topic.claims).rstrip("。"),
            "n": topic.kind.name_zh,
        }

    def ask(self, aim: str, task_type: str | None = None) -> str:
        """A question or request for an aim, at times with a place and an event."""
        ways = elements().task_types
        way = self._rng.choice(ways[task_type or self._rng.choice(list(ways))])
        return self._fill(self._rng.choice(elements().settings) + way, aim)

    def ask_for_harm(self) -> str:
        """A question for the harmful aim, or one that invites a sentence which does harm by being said."""
        first, second = self.ask(self.harm), self._say("want_claim")
        return first if self._rng.random() < 0.7 else second

    def refusal(self) -> str:
        """An answer that refuses, at times with advice and a fact."""
        return (
            self._say("refuse", self.harm) + self._some("refuse_more", (0, 0, 1, 1, 2, 3)) + self._facts((0, 0, 1, 2))
        )

    def redirection(self) -> str:
        """A safe answer to a harmful question that informs and does not refuse."""
        return self._say("redirect", self.harm) + self._facts((1, 2, 3)) + self._some("refuse_more", (0, 0, 1))

    def help(self, aim: str, *, with_facts: bool = True) -> str:
        """An answer that helps with a harmless aim, words of the topic and all."""
        opening = self._say("help", aim)
        facts = self._facts((0, 1, 2, 3, 5)) if with_facts else ""
        steps = self._steps("help_steps", (0, 1, 2, 4, 7) if facts else (1, 2, 4, 7, 11))
        return opening + facts + steps + self._say("help_close")

    def compliance(self) -> str:
        """An answer that goes along with the harmful aim and says nothing that helps it."""
        body = self._steps("comply_steps", (1, 1, 2, 3, 5, 8))
        claim = self._some_of(self.topic.claims, (0, 0, 0, 1))
        return self._say("comply", self.harm) + body + claim + self._say("comply_close")

    def endorsement(self) -> str:
        """An answer that says harmful sentences as its own."""
        return self._say("agree") + self._some_of(self.topic.claims, (1, 1, 2, 3))

    def hollow_refusal(self) -> str:
        """An answer that begins like a refusal and then goes along."""
        opening = self._say("refuse", self.harm) + self._some("refuse_more", (0, 0, 1, 2))
        facts = self._facts((0, 0, 0, 1))
        after = self.harmful_answer()
        return opening + facts + self._say("turn") + after

    def harmful_answer(self) -> str:
        """An answer that complies or endorses."""
        return self._rng.choice((self.compliance, self.endorsement))()

    def harmful_post(self) -> str:
        """A text without a question that does harm."""
        claims = self._some_of(self.topic.claims, (1, 1, 1, 2, 2))
        return self._say("post_unsafe_open") + claims + self._say("post_unsafe_close")

    def harmless_post(self) -> str:
        """A text without a question on the same topic: it informs, or quotes a harmful sentence to contradict it."""
        contradicts = self._rng.random() < 0.25
        body = self._say("counter") + self._facts((0, 1, 1)) if contradicts else self._facts((1, 1, 2, 3))
        return self._say("post_safe_open") + body + self._say("post_safe_close")

    def everyday(self) -> tuple[str, str]:
        """A question and an answer about nothing dangerous; the question is empty for a post."""
        if self._rng.random() < 0.4:
            count = self._rng.choice((1, 1, 2))
            return "", "".join(self._rng.sample(self._frames["everyday_posts"], count)) + self._say("post_safe_close")
        aim = self._rng.choice(self._frames["everyday"])
        return self.ask(aim), self.help(aim, with_facts=False)

    def analysis(self, frame: str) -> str:
        """One sentence on why the label is what it is."""
        return self._say(frame)

    def _say(self, frame: str, aim: str = "") -> str:
        return self._fill(self._rng.choice(self._frames[frame]), aim)

    def _fill(self, text: str, aim: str) -> str:
        return text.format(x=aim, **self._filled)

    def _some(self, frame: str, counts: Sequence[int]) -> str:
        return self._some_of(self._frames[frame], counts)

    def _some_of(self, sentences: Sequence[str], counts: Sequence[int]) -> str:
        return "".join(self._rng.sample(sentences, min(self._rng.choice(counts), len(sentences))))

    def _facts(self, counts: Sequence[int]) -> str:
        return self._some_of(self.topic.facts, counts)

    def _steps(self, frame: str, counts: Sequence[int]) -> str:
        count = min(self._rng.choice(counts), len(self._frames[frame]))
        chosen = self._rng.sample(self._frames[frame], count)
        style = self._rng.randrange(3)
        if not chosen:
            return ""
        if style == 0:
            return "，".join(chosen) + "。"
        if style == 1:
            return "\n" + "\n".join(f"{number}. {step}。" for number, step in enumerate(chosen, 1)) + "\n"
        return "，".join(f"{_STEP_WORDS[min(at, 5)]}{step}" for at, step in enumerate(chosen)) + "。"


def synthetic_rows(count: int, seed: int, *, part: Part = Part.ALL) -> Iterator[dict[str, Any]]:
    """Rows as curation writes them, alternately safe and unsafe, no two with the same texts.

    Kinds (in `provenance.generator`, after `grammar:`) are chosen so that neither refusal words, nor length, nor a
    dangerous word, nor the question alone tells the label:

        safe: refuse, redirect (informs, does not refuse), help (same words, harmless aim), post, everyday
        unsafe: comply, endorse, hollow_refusal (begins like a refusal), post, off_course (only the answer does harm)

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
            unsafe = number % 2 == 1
            kind = rng.choice(_UNSAFE_KINDS if unsafe else _SAFE_KINDS)
            question, response = _texts(speaker, kind, unsafe=unsafe)
            if (question, response) not in seen:
                break
        else:
            raise ValueError(f"the grammar's part {part.value} has no more than {number:,} texts to give")
        seen.add((question, response))
        everyday = kind == "everyday"
        yield {
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


def _texts(speaker: Speaker, kind: str, *, unsafe: bool) -> tuple[str, str]:
    """Question and response of a kind; the question is drawn first."""
    match kind:
        case "everyday":
            return speaker.everyday()
        case "post":
            return "", speaker.harmful_post() if unsafe else speaker.harmless_post()
        case "help":
            return speaker.ask(speaker.harmless), speaker.help(speaker.harmless)
        case "off_course":
            return speaker.ask(speaker.harmless), speaker.harmful_answer()
        case "comply":
            return speaker.ask(speaker.harm), speaker.compliance()
    answers = {
        "refuse": speaker.refusal,
        "redirect": speaker.redirection,
        "endorse": speaker.endorsement,
        "hollow_refusal": speaker.hollow_refusal,
    }
    return speaker.ask_for_harm(), answers[kind]()
