"""Chunks of runs that keep another fingerprint than this worker's: passed on to one that has it, as long as one may.

What is judged under another fingerprint is not settled (docs/decisions/0002). Knows nothing of guards and devices.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import Final

from infra.log import get_logger
from schemas.fleet import QUARANTINED, Announcement
from schemas.guards import TextForm
from schemas.messages import JudgeChunk
from schemas.verdicts import Fingerprint
from worker.consumer.deliveries import Deliveries

PAUSE_S: Final = 1.0
"""Between taking such a chunk and passing it on, or two wrong workers would do nothing else."""

log = get_logger(__name__)


class Pins:
    """Passes chunks on, and ends those that nobody takes.

    `announced` lists the processes of the fleet. A chunk is kept on its way for `patience_s`, for
    `unsure_patience_s` while a worker is announced that may have the run's fingerprint, and as long as one has it.
    """

    def __init__(
        self,
        deliveries: Deliveries,
        announced: Callable[[], Iterable[Announcement]],
        *,
        patience_s: float,
        unsure_patience_s: float,
        pause_s: float = PAUSE_S,
    ) -> None:
        self._deliveries = deliveries
        self._announced = announced
        self._patience_s = patience_s
        self._unsure_patience_s = unsure_patience_s
        self._pause_s = pause_s

    def pass_on(self, chunk: JudgeChunk, tag: str | None, mine: Fingerprint) -> str | None:
        """Give the chunk to another worker; or the reason to end it, if nobody has taken it for long."""
        passed_on_s = self._deliveries.count_pass(chunk)
        if passed_on_s > self._patience_for(chunk):
            return (
                f"the run keeps the fingerprint {chunk.pin}, and for {passed_on_s:.0f} s no worker has had it; "
                f"this one has {mine.digest}"
            )
        log.info("chunk_passed_on", pinned=chunk.pin, mine=mine.digest)
        time.sleep(self._pause_s)
        self._deliveries.pass_on(chunk, tag)
        return None

    def _patience_for(self, chunk: JudgeChunk) -> float:
        """Seconds that a chunk may be on its way: without end where a worker has the run's fingerprint and works.

        Examples and another form of the texts change a fingerprint, and workers announce the one without: then any
        other one may be the run's, and so may that of a worker which announces none.
        """
        others = [process for process in self._announced() if process.kind == "worker" and process.guard == chunk.guard]
        digests = {(process.fingerprints or {}).get(chunk.mode.value) for process in others}
        if chunk.examples or chunk.form is not TextForm.AS_IS:
            return self._unsure_patience_s if len(digests) > 1 else self._patience_s
        working = [process for process in others if process.state != QUARANTINED]
        if any((process.fingerprints or {}).get(chunk.mode.value) == chunk.pin for process in working):
            return math.inf
        return self._unsure_patience_s if {None, chunk.pin} & digests else self._patience_s
