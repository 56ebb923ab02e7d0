"""Questions, answers and posts about one topic, drawn by a generator of random numbers.

Knows nothing about rows. Each function says one kind of thing; which label it deserves is said in rows.py.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

from producer.curation.synthetic.phrases import Part, Topic, elements, frames

_STEP_WORDS: Final = ("首先", "其次", "然后", "接着", "再者", "最后")


class Speaker:
    """Speaks about one topic with the phrases of one part; the same draws give the same text.

    `harm` and `harmless` are the aims it speaks of, drawn where they are not given.
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

    def ask_for_claim(self) -> str:
        """A question that invites a sentence which does harm by being said."""
        return self._say("want_claim")

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
        after = self._rng.choice((self.compliance, self.endorsement))()
        return opening + facts + self._say("turn") + after

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
