"""A deterministic guard without a model: for tests, drills and benchmarks of everything around the model.

Its verdict depends on the text alone. A marker in the text steers it: `[[fake:safe]]`, `[[fake:unsafe]]`,
`[[fake:unparseable]]`, `[[fake:crash]]` (the device process dies), `[[fake:hang]]` (its batch never ends),
`[[fake:oom]]` (its batch fits only alone), `[[fake:slow]]` (it takes a second longer), `[[fake:raise-in-render]]` and
`[[fake:raise-in-read]]` (the guard raises), `[[fake:kill-consumer]]` (rendering kills its process, as a segfault in a
tokeniser would).
"""

from __future__ import annotations

import math
import os
import re
import signal
import sys
from array import array
from collections.abc import Sequence
from typing import Final

from schemas.guards import Mode
from schemas.items import Example, Kind, Label
from schemas.messages import ChunkItem
from schemas.verdicts import Outcome, Verdict
from worker.device.engines.fake import DIRECTIVES
from worker.guards.base import PromptIds, no_examples, no_such_mode
from worker.guards.reading import Answer, from_answer, unreadable, worst

_RAISE, _KILL = "raise-in-render", "kill-consumer"
_MARKER: Final = re.compile(rf"\[\[fake:({'|'.join((*DIRECTIVES, _RAISE, _KILL))})]]")
_INT_CODEC: Final = f"utf-32-{sys.byteorder[0]}e"
_LOW_MASS: Final = 0.5
_LABELS_BY_ANSWER: Final = {'{"答案": "不安全"}': Label.UNSAFE, '{"答案": "安全"}': Label.SAFE}


class FakeGuard:
    """Ids are the text's UTF-8 bytes, after a directive where the text has a marker."""

    name: Final = "fake"
    model: Final = "fake"
    prompt_digest: Final = "fake-1"
    modes: Final = (Mode.SCORE, Mode.GENERATE)
    one_pass: Final = False
    category_question: Final = None
    kinds: Final = tuple(Kind)
    label_ids: Final = ((0,), (1,))
    stop_ids: Final[tuple[int, ...]] = ()
    verdict_ids: Final[tuple[tuple[int, ...], ...]] = ()
    max_new_tokens: Final = 32

    def prefix_ids(self, mode: Mode) -> PromptIds:  # noqa: ARG002 - the Guard protocol's signature
        """Fake prompts share nothing."""
        return array("i")

    def render(self, items: Sequence[ChunkItem], mode: Mode) -> list[list[PromptIds]]:
        """One prompt per item, whatever its length."""
        if mode not in self.modes:
            raise no_such_mode(self, mode)
        prompts = []
        for item in items:
            earlier = "".join(f"{turn.content}\n" for turn in item.history)
            text = f"{earlier}{item.question}\n{item.response}"
            marker = _MARKER.search(text) if "[[fake:" in text else None
            ids = array("i", [_directive(marker[1])] if marker else [])
            # Each byte as an int: 20 times faster than one by one, and benchmarks are to measure the fleet.
            ids.frombytes(text.encode().decode("latin-1").encode(_INT_CODEC))
            prompts.append([ids])
        return prompts

    def with_examples(self, examples: Sequence[Example]) -> FakeGuard:  # noqa: ARG002 - the Guard protocol's signature
        """No format of its kind has a place for examples."""
        raise no_examples(self)

    def read_scores(
        self,
        seq: int,
        windows: Sequence[Sequence[float]],
        *,
        single: bool = False,  # noqa: ARG002
    ) -> Verdict:
        """The worst window's likelier label, or unparseable where both are unlikely."""
        found = []
        for window in windows:
            safe, unsafe = map(math.exp, window)
            mass = min(1.0, safe + unsafe)
            if mass < _LOW_MASS:
                reason = "both labels are unlikely"
                found.append(Verdict(seq=seq, outcome=Outcome.UNPARSEABLE, label_mass=mass, reason=reason))
                continue
            p_unsafe = unsafe / (safe + unsafe)
            label = Label.UNSAFE if p_unsafe > 0.5 else Label.SAFE
            found.append(Verdict(seq=seq, outcome=Outcome.SCORED, label=label, p_unsafe=p_unsafe, label_mass=mass))
        return worst(found)

    def category_prompt(
        self,
        prompts: Sequence[PromptIds],  # noqa: ARG002 - the Guard protocol's signature
        windows: Sequence[Sequence[float]],  # noqa: ARG002
        *,
        single: bool = False,  # noqa: ARG002
    ) -> PromptIds | None:
        """It has no categories."""
        return None

    def read_ids(
        self,
        seq: int,
        windows: Sequence[Sequence[int]],
        *,
        single: bool = False,  # noqa: ARG002
    ) -> Verdict:
        """The worst window's label: one of the fake engine's two answers; any other text is unparseable."""
        found = []
        for window in windows:
            raw = bytes(window).decode(errors="replace")
            label = _LABELS_BY_ANSWER.get(raw)
            answer = Answer(label) if label else unreadable("not one of the two answers")
            found.append(from_answer(seq, answer, raw))
        return worst(found)


def _directive(name: str) -> int:
    """The first id of a prompt whose text has the marker; the markers that are for the guard take effect here."""
    if name == _RAISE:
        raise ValueError("the fake guard was asked to raise")
    if name == _KILL:
        os.kill(os.getpid(), signal.SIGKILL)
    return DIRECTIVES[name]
