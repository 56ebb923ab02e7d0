"""From a chunk's items to prompts, so that one item that its guard cannot read costs itself alone.

`read_items` asks the guard in this process. `Reader` asks it in a child: what ends or stalls that one is the doing of
the item it read. Knows no device and no queue.
"""

from __future__ import annotations

import itertools
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, NamedTuple

from infra.errors import DeviceProtocolError, GuardError
from infra.log import configure_logging, get_logger
from infra.normal_form import normal_form
from infra.process import die_with_parent, python_module
from infra.settings import child_environment, load_settings
from schemas.guards import Mode, TextForm
from schemas.items import Example
from schemas.messages import ChunkItem
from worker.guards.base import Guard, PromptIds
from worker.guards.registry import load_guard

GUARD_DEADLINE_S: Final = 30.0
"""A guard that reads for so long hangs."""
_LOAD_S: Final = 600.0
_TRIES: Final = 2
"""Deaths of the reading process by one item; the first may have been chance."""

log = get_logger(__name__)


class Read(NamedTuple):
    """Prompts per item, () for one that has none; and by `seq` why not."""

    windows: list[list[PromptIds]]
    refused: dict[int, str]


def failure(guard: str, error: Exception) -> str:
    """A dead item's reason: our own words, or the error's type, whose message may hold the item's text."""
    return str(error) if isinstance(error, GuardError) else f"the guard {guard} failed: {type(error).__name__}"


def read_items(guard: Guard, items: Sequence[ChunkItem], mode: Mode, form: TextForm = TextForm.AS_IS) -> Read:
    """Prompts of all items, in the form of their texts that is asked for: a second form is a further window.

    An item of which one form cannot be asked has no prompts at all: half of it would pass for the whole.

    Raises:
        MemoryError: this is no item's own doing.
    """
    if form is TextForm.AS_IS:
        return _read_as_they_are(guard, items, mode)
    asked = [_in_form(item, form) for item in items]
    windows, refused = _read_as_they_are(guard, list(itertools.chain.from_iterable(asked)), mode)
    left = iter(windows)
    whole = [list(itertools.chain.from_iterable(next(left) for _ in forms)) for forms in asked]
    return Read([[] if item.seq in refused else own for item, own in zip(items, whole, strict=True)], refused)


def _in_form(item: ChunkItem, form: TextForm) -> list[ChunkItem]:
    """The item as it is asked about: once, or twice where both its forms are asked about and differ."""
    turns = tuple(turn.model_copy(update={"content": _seen(turn.content)}) for turn in item.history)
    texts = {"question": _seen(item.question), "response": _seen(item.response), "history": turns}
    normal = item.model_copy(update=texts)
    return [normal] if form is TextForm.NORMAL or normal == item else [item, normal]


def _seen(text: str) -> str:
    """Its normal form, or the text itself where nothing is to be seen in it."""
    return normal_form(text).text or text


def _read_as_they_are(guard: Guard, items: Sequence[ChunkItem], mode: Mode) -> Read:
    """All items at once; where that fails, one by one.

    Raises:
        MemoryError: this is no item's own doing.
    """
    try:
        return Read(guard.render(items, mode), {})
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - the edge between a guard and its chunk: whatever it raises is one item's
        log.warning("chunk_rendered_singly", reason=failure(guard.name, error))
    windows: list[list[PromptIds]] = []
    refused: dict[int, str] = {}
    for item in items:
        try:
            windows += guard.render([item], mode)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - as above
            windows.append([])
            refused[item.seq] = failure(guard.name, error)
    return Read(windows, refused)


@dataclass
class GuardClock:
    """Notes which threads are in a guard's code, and since when. Thread-safe."""

    deadline_s: float = GUARD_DEADLINE_S
    _since: dict[int, float] = field(default_factory=dict)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Around a call of the guard."""
        thread = threading.get_ident()
        self._since[thread] = time.monotonic()
        try:
            yield
        finally:
            self._since.pop(thread, None)

    def is_well(self) -> bool:
        """False if some call has taken too long: only the end of this process ends it."""
        latest = time.monotonic() - self.deadline_s
        return all(since > latest for since in list(self._since.values()))


class Reader:
    """Reads items one by one in a child process, which is started when first needed. Thread-safe."""

    def __init__(
        self,
        guard: str,
        location: str | None,
        *,
        weights: bool,
        prompt_digest: str,
        family: str | None = None,
        deadline_s: float = GUARD_DEADLINE_S,
    ) -> None:
        """`prompt_digest`: the one of this process's own guard, which the child must have, too."""
        self._guard = guard
        self._arguments = json.dumps([guard, location, weights, prompt_digest, family])
        self._deadline_s = deadline_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def read(
        self,
        items: Sequence[ChunkItem],
        mode: Mode,
        examples: Sequence[Example],
        *,
        form: TextForm = TextForm.AS_IS,
        on_progress: Callable[[], None],
    ) -> Read:
        """Prompts of each item, or why it has none.

        Raises:
            GuardError: the process does not start.
            DeviceProtocolError: the checkpoint's tokenizer or template was replaced since this process read them.
        """
        windows: list[list[PromptIds]] = []
        refused: dict[int, str] = {}
        for item in items:
            shown = [example.model_dump(mode="json") for example in examples]
            question = json.dumps([mode.value, shown, form.value, item.model_dump(mode="json")])
            with self._lock:
                answer = self._ask(question.encode() + b"\n")
            on_progress()
            windows.append([array("i", prompt) for prompt in answer.get("prompts", ())])
            if "refused" in answer:
                refused[item.seq] = answer["refused"]
        return Read(windows, refused)

    def _ask(self, question: bytes) -> dict[str, Any]:
        end = ""
        for _ in range(_TRIES):
            process = self._running()
            answer = _exchange(process, question, self._deadline_s)
            if answer is not None:
                return answer
            end = self._end(process)
            log.error("reader_died", reason=end)
        return {"refused": f"the guard {self._guard} failed: the process that read the item {end}, {_TRIES} times"}

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            command = python_module("worker.consumer.reading", self._arguments)
            environment = child_environment(LIBRA_PARENT_PID=str(os.getpid()))
            self._process = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
            )
            if _exchange(self._process, b"", _LOAD_S) is None:
                if self._end(self._process) == _ended_with(DeviceProtocolError.exit_code):
                    raise DeviceProtocolError(f"the checkpoint's prompt was replaced while {self._guard} is served")
                raise GuardError(f"the process that reads items for {self._guard} does not start")
        return self._process

    def _end(self, process: subprocess.Popen[bytes]) -> str:
        """How it ended; one that still runs took too long and is killed."""
        self._process = None
        try:
            code = process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return f"did not answer within {self._deadline_s:g} s"
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else _ended_with(code)


def _ended_with(code: int) -> str:
    return f"ended with exit code {code}"


def _exchange(process: subprocess.Popen[bytes], question: bytes, timeout_s: float) -> dict[str, Any] | None:
    """One line there, one line back; None if none came in time."""
    if process.stdin is None or process.stdout is None:
        return None
    deadline = time.monotonic() + timeout_s
    left, line = memoryview(question), bytearray()
    os.set_blocking(process.stdin.fileno(), False)
    while left or not line.endswith(b"\n"):
        pipe, event = (process.stdin, selectors.EVENT_WRITE) if left else (process.stdout, selectors.EVENT_READ)
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, event)
            if not selector.select(max(0.0, deadline - time.monotonic())):
                return None
        try:
            if left:
                left = left[os.write(pipe.fileno(), left) :]
                continue
            piece = os.read(pipe.fileno(), 1 << 16)
        except OSError:
            return None
        if not piece:
            return None
        line += piece
    answer: dict[str, Any] = json.loads(line)
    return answer


def main() -> None:
    """Read what comes on stdin, an item a line, until it ends."""
    settings = load_settings()
    die_with_parent(parent_pid=settings.parent_pid)
    configure_logging(settings.log_level, settings.log_format)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    name, location, weights, prompt_digest, family = json.loads(sys.argv[1])
    guard = load_guard(name, location, weights=weights, family=family)
    if guard.prompt_digest != prompt_digest:
        sys.exit(DeviceProtocolError.exit_code)
    with_examples = lru_cache(maxsize=1)(guard.with_examples)
    _say(answers, {"ready": True})
    for line in sys.stdin.buffer:
        mode, examples, form, item = json.loads(line)
        shown = tuple(Example.model_validate(example, strict=False) for example in examples)
        asked = with_examples(shown) if shown else guard
        windows, refused = read_items(asked, [ChunkItem.model_validate(item, strict=False)], Mode(mode), TextForm(form))
        prompts = [prompt.tolist() for prompt in windows[0]]
        _say(answers, {"prompts": prompts} | ({"refused": next(iter(refused.values()))} if refused else {}))


def _say(answers: Any, answer: dict[str, Any]) -> None:  # noqa: ANN401 - a text stream
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
