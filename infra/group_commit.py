"""One call for many callers (group commit): whoever comes while a call is under way goes with the next one.

No delay is added: a lone caller's call starts at once. Knows nothing of what is called.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Final, Generic, TypeVar

ArgumentT = TypeVar("ArgumentT")
ResultT = TypeVar("ResultT")


class _Call(Generic[ArgumentT, ResultT]):
    """One caller's part of a joint call, and whether this caller makes the call for all."""

    def __init__(self, argument: ArgumentT) -> None:
        self.argument: Final = argument
        self.woken: Final = threading.Event()
        self.leads = False
        self.outcome: ResultT | BaseException | None = None


class GroupCommit(Generic[ArgumentT, ResultT]):
    """Joins calls from many threads. One of the callers makes the joint call; there is no thread of its own.

    `act` takes the arguments that wait, oldest first, `at_most` so many, and gives one result each. An exception
    among the results is raised to the one caller whose it is; one that `act` raises, to all of that call.
    """

    def __init__(self, act: Callable[[list[ArgumentT]], Sequence[ResultT | Exception]], *, at_most: int) -> None:
        self._act = act
        self._at_most = at_most
        self._lock = threading.Lock()
        self._waiting: list[_Call[ArgumentT, ResultT]] = []
        self._under_way = False

    def __call__(self, argument: ArgumentT) -> ResultT:
        """The result for this argument, by a call that others may share.

        Raises:
            Exception: whatever `act` raises, or gives as this argument's result.
        """
        call = _Call[ArgumentT, ResultT](argument)
        with self._lock:
            self._waiting.append(call)
            if not self._under_way:
                self._under_way = True
                self._appoint(call)
        call.woken.wait()
        if call.leads:
            self._lead()
        if isinstance(call.outcome, BaseException):
            raise call.outcome
        return call.outcome  # type: ignore[return-value]

    @staticmethod
    def _appoint(call: _Call[ArgumentT, ResultT]) -> None:
        call.leads = True
        call.woken.set()

    def _lead(self) -> None:
        """Make one joint call; the leader's own argument is the oldest, so it is part of it."""
        with self._lock:
            calls = self._waiting[: self._at_most]
            del self._waiting[: self._at_most]
        try:
            outcomes = self._act([call.argument for call in calls])
            for call, outcome in zip(calls, outcomes, strict=True):
                call.outcome = outcome
        except BaseException as error:  # noqa: BLE001 - every caller must hear of it, or it would wait for ever
            for call in calls:
                call.outcome = error
        with self._lock:
            if self._waiting:
                self._appoint(self._waiting[0])
            else:
                self._under_way = False
        for call in calls:
            call.woken.set()
