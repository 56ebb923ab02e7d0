"""Training rows as token ids: the prompt that is served, and the answer to be learnt after it. Torch-free.

The prompt is rendered by the Libra guard itself, so that what is learnt is what is asked. An answer is the reference's
JSON, the label first. A row without an analysis teaches its label alone: no reason is invented for it.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from infra.critic import WORDS
from infra.errors import GuardError
from schemas.guards import Mode
from schemas.items import Label
from schemas.messages import ChunkItem
from worker.guards.base import PromptIds, common_length
from worker.guards.libra import PREFILL, LibraGuard, user_turn
from worker.guards.prompt import ChatTokenizer
from worker.training.samples import Sample

_AFTER_LABEL: Final = '",\n  "分析": "'
_ANSWER_END: Final = '"\n}'


def label_text(label: Label) -> str:
    """The text that follows the prefilled answer, up to the analysis."""
    return f"{WORDS[label]}{_AFTER_LABEL}"


def answer_text(label: Label, analysis: str) -> str:
    """The whole answer to be learnt, without the turn's end."""
    written = json.dumps(analysis, ensure_ascii=False)[1:-1]
    return f"{PREFILL}{label_text(label)}{written}{_ANSWER_END}"


@dataclass(frozen=True, slots=True)
class Example:
    """One row. The ids from `answer` on are to be learnt; the label's first id stands at `label`."""

    ids: PromptIds
    answer: int
    label: int
    truth: Label
    weight: float = 1.0

    @property
    def prompt(self) -> PromptIds:
        """The prompt of score mode: everything before the label."""
        return self.ids[: self.label]


class ExampleEncoder:
    """One checkpoint's way from a sample to ids.

    Raises:
        GuardError: its tokenizer or template cannot do it, or what is learnt would not be what is read.
    """

    def __init__(self, folder: Path) -> None:
        self.guard = LibraGuard(folder, name=folder.name, model=folder.name)
        self._chat = ChatTokenizer(folder)
        self._end = array("i", [self._chat.stop_ids[-1]])
        (asked,) = self.guard.render([ChunkItem(seq=0, question="", response="")], Mode.SCORE)[0]
        (user,) = self._chat.encode_users([user_turn("", "")])
        self._tail = asked[len(user) :]
        # The ids of an answer up to the end of its label, whatever follows.
        self._alone: dict[Label, PromptIds] = {}
        for label, ids in zip(Label, self.guard.label_ids, strict=True):
            answers = [self._chat.tail_ids(answer_text(label, text)) for text in ("分析", "a")]
            words = self._tail + array("i", ids)
            self._alone[label] = answers[0][: common_length([*answers, words])]
        lead = self._chat.tail_ids("")
        self._before_answer = common_length([lead, *self._alone.values()])
        ends = len(self._tail)
        learnt = [alone[ends : ends + 1].tolist() for alone in self._alone.values()]
        if any(alone[:ends] != self._tail for alone in self._alone.values()) or learnt != [
            [first] for first in self.first_ids
        ]:
            raise GuardError(
                f"the tokenizer of {folder} cuts a whole answer otherwise than the beginning that is served"
            )

    @property
    def first_ids(self) -> tuple[int, int]:
        """The ids that the labels safe and unsafe begin with."""
        safe, unsafe = self.guard.label_ids
        return safe[0], unsafe[0]

    def encode(self, samples: Iterable[Sample], max_tokens: int) -> tuple[list[Example], int]:
        """The rows that are no longer than `max_tokens`, and how many were left out because they are."""
        rows = []
        for sample in samples:
            (user,) = self._chat.encode_users([user_turn(sample.item.question, sample.item.response)])
            answer = self._alone[sample.label]
            if sample.analysis:
                answer = self._chat.tail_ids(answer_text(sample.label, sample.analysis)) + self._end
            start = len(user)
            place = start + len(self._tail)
            rows.append(Example(user + answer, start + self._before_answer, place, sample.label))
        kept = [row for row in rows if len(row.ids) <= max_tokens]
        return kept, len(rows) - len(kept)
