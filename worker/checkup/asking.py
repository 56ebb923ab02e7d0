"""A device process of one's own, asked about the plain texts in every kind and mode that a guard has."""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from infra.errors import DeviceAwayError, DeviceError
from schemas.guards import Mode
from schemas.items import Kind
from schemas.messages import ChunkItem, Lane
from schemas.verdicts import Outcome, Verdict
from worker.checkup.texts import PlainText
from worker.device.client import DeviceClient
from worker.device.engines.base import EngineInfo
from worker.device.process import LOAD_TIMEOUT_S, DeviceProcess
from worker.device.protocol import Answer, Dead, DeviceRequest, DeviceResult, Generated, Scored
from worker.device.protocol import Kind as Pass
from worker.device.spec import DeviceSpec
from worker.guards.base import Guard, PromptIds, pass_of

_GONE_S: Final = 5.0
"""A device process that died is not started again: its end is what is to be said."""
WRITTEN_TOKENS: Final = 8
"""Tokens that the model may write where its label is read."""

_LABEL_TOKENS: Final = 64
"""A guard whose label can be scored writes it within so many tokens; what follows is an analysis."""

Run = Callable[[DeviceRequest], DeviceResult]


@dataclass(frozen=True)
class Judged:
    """One text, asked about as one kind in one mode, and the guard's verdict on it."""

    text: PlainText
    kind: Kind
    mode: Mode
    verdict: Verdict


@dataclass(frozen=True)
class Sample:
    """One text in the guard's own prompts, and what the model writes behind the first of them by itself.

    `written` is None where the device wrote nothing: a classifier.
    """

    text: PlainText
    kind: Kind
    mode: Mode
    prompts: tuple[PromptIds, ...]
    written: tuple[int, ...] | None


@contextmanager
def device_of(spec: DeviceSpec, *, visible: str, log: Path) -> Iterator[tuple[Run, EngineInfo]]:
    """A device process as a worker starts it; yields what runs a request on it, and the facts about its engine.

    The paths of `spec` are filled in here.

    Raises:
        GuardError: the checkpoint is refused; the message says why.
        DeviceError: the process died.
    """
    # Short, because a Unix socket's path is limited to 107 bytes.
    with tempfile.TemporaryDirectory(prefix="libra-c", ignore_cleanup_errors=True) as folder:
        paths = {"socket_path": Path(folder, "0.sock"), "heartbeat_path": Path(folder, "0.pulse")}
        process = DeviceProcess(spec.model_copy(update=paths), visible_devices=visible, log=log)
        client = DeviceClient(paths["socket_path"], max_deaths=1, reconnect_timeout_s=_GONE_S)
        try:
            process.wait_ready(LOAD_TIMEOUT_S)
            yield client.run, client.info
        except DeviceAwayError as error:
            raise DeviceError(
                f"the device process of {spec.guard} died while it judged plain texts; see {log}"
            ) from error
        finally:
            client.close()
            process.kill()


def judge(guard: Guard, run: Run, texts: Sequence[PlainText], kind: Kind, mode: Mode) -> list[Judged]:
    """The guard's verdict on each text. Raises what `Guard.render` does."""
    items = [text.item(at, kind) for at, text in enumerate(texts)]
    windows = guard.render(items, mode)
    answers = iter(run(_request(guard, mode, [prompt for own in windows for prompt in own])).answers)
    return [
        Judged(text, kind, mode, _verdict(guard, item, [next(answers) for _ in own]))
        for text, item, own in zip(texts, items, windows, strict=True)
    ]


def sample(guard: Guard, run: Run, text: PlainText, kind: Kind) -> Sample:
    """The text's prompts in the guard's usual mode, and what the model writes behind the first one."""
    mode = guard.modes[0]
    prompts = tuple(guard.render([text.item(0, kind)], mode)[0])
    if mode is Mode.CLASSIFY:
        return Sample(text, kind, mode, prompts, None)
    longest = max(WRITTEN_TOKENS, *map(len, guard.label_ids)) if guard.label_ids else guard.max_new_tokens
    request = DeviceRequest(
        Pass.GENERATE, Lane.BULK, [prompts[0]], stop_ids=guard.stop_ids, max_new_tokens=min(longest, 4 * WRITTEN_TOKENS)
    )
    (answer,) = run(request).answers
    return Sample(text, kind, mode, prompts, answer.ids if isinstance(answer, Generated) else None)


def _request(guard: Guard, mode: Mode, prompts: Sequence[array[int]]) -> DeviceRequest:
    asked = pass_of(guard, mode)
    writes = asked is Mode.GENERATE
    tokens = min(guard.max_new_tokens, _LABEL_TOKENS) if Mode.SCORE in guard.modes else guard.max_new_tokens
    return DeviceRequest(
        Pass(asked.value),
        Lane.BULK,
        list(prompts),
        labels=guard.label_ids if asked is Mode.SCORE else (),
        stop_ids=guard.stop_ids if writes else (),
        max_new_tokens=tokens if writes else 0,
        verdict_ids=guard.verdict_ids if writes else (),
    )


def _verdict(guard: Guard, item: ChunkItem, answers: Sequence[Answer]) -> Verdict:
    for answer in answers:
        if isinstance(answer, Dead):
            return Verdict(seq=item.seq, outcome=Outcome.DEAD, reason=answer.reason)
    scores = [answer.logprobs for answer in answers if isinstance(answer, Scored)]
    if scores:
        return guard.read_scores(item.seq, scores, single=item.single)
    ids = [answer.ids for answer in answers if isinstance(answer, Generated)]
    return guard.read_ids(item.seq, ids, single=item.single)
