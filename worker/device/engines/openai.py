"""The engine on an external server: anything that speaks OpenAI's completions protocol.

The guard's tokenizer is here, so prompts travel as token ids; a batch's prompts travel at the same time,
and the server batches them as it likes.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any, Final, TypeVar

from infra.errors import GuardError
from infra.log import get_logger
from worker.device.engines.base import DeviceLost, EngineInfo, PartlyAnswered
from worker.device.engines.openai_dialect import Dialect, PromptText, agree, candidates, first_choice
from worker.device.engines.openai_http import Endpoint, Refused, Unanswered
from worker.device.spec import WAVES, ServerSpec

log = get_logger(__name__)

IMPOSSIBLE: Final = -100.0
"""Log-probability of what the server did not name: e^-100 is nothing, and still a finite number."""
START_OUTAGE_S: Final = 5.0
"""Seconds to wait for a server when the engine starts; short, so that a wrong address is reported soon."""
_TOKENS_PER_PROMPT: Final = 4_096
_UNKNOWN_CONTEXT: Final = 1_000_000
_SPARE_TOKENS: Final = 4
_MAX_STOPS: Final = 4

RowT = TypeVar("RowT", tuple[float, ...], tuple[int, ...])


class OpenAIEngine:
    """Asks an `Endpoint` in its `Dialect`. One thread at a time. `DeviceLost` means that the server is away."""

    def __init__(
        self,
        endpoint: Endpoint,
        dialect: Dialect,
        text: PromptText,
        *,
        concurrency: int = 16,
        max_batch_tokens: int | None = None,
        max_batch_items: int | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._dialect = dialect
        self._text = text
        self._pool = ThreadPoolExecutor(concurrency, thread_name_prefix="openai")
        self.info = EngineInfo(
            engine=f"openai-{dialect.scoring}",
            dtype="the server's",
            device=endpoint.url,
            device_name="a model server",
            revision=f"served as {dialect.model}",
            max_batch_tokens=max_batch_tokens or concurrency * _TOKENS_PER_PROMPT,
            max_batch_items=max_batch_items or concurrency * WAVES,
            context_tokens=dialect.context_tokens or _UNKNOWN_CONTEXT,
        )

    def score(self, prompts: Sequence[array[int]], labels: Sequence[Sequence[int]]) -> list[tuple[float, ...]]:
        """Log-probability of each label after each prompt.

        A token that is not among the server's candidates counts as impossible. Without log-probabilities
        the label that the model writes is certain and all others are impossible; if it writes none, all are.
        """
        ask = self._logprobs if self._dialect.top else self._chosen
        return self._each(prompts, partial(ask, labels=labels))

    def generate(
        self,
        prompts: Sequence[array[int]],
        *,
        max_new_tokens: int,
        stop_ids: Sequence[int],
        verdict_ids: Sequence[Sequence[int]] = (),  # noqa: ARG002 - a server knows the end of a text, not of a verdict
    ) -> list[tuple[int, ...]]:
        """Greedy continuation of each prompt, without the stop id; a text without ids becomes ids again."""
        options: dict[str, object] = {"max_tokens": max_new_tokens}
        if stop_ids:
            options["stop"] = [self._text.of([stop]) for stop in stop_ids[:_MAX_STOPS]]
        if stop_ids and self._dialect.extras:
            options["stop_token_ids"] = list(stop_ids)
        stops = frozenset(stop_ids)

        def write(prompt: array[int]) -> tuple[int, ...]:
            choice = self._complete(prompt, **options)
            ids = choice.get("token_ids")
            if not isinstance(ids, list):
                ids = self._text.ids(str(choice.get("text", "")))
            return tuple(takewhile(lambda token: token not in stops, ids))

        return self._each(prompts, write)

    def classify(self, prompts: Sequence[array[int]]) -> list[tuple[float, ...]]:
        """No completions server runs a classification head: always a ValueError."""
        raise ValueError(f"{self.info.device} completes texts and has no classes for {len(prompts)} prompts")

    def close(self) -> None:
        """Let the threads go."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _each(self, prompts: Sequence[array[int]], ask: Callable[[array[int]], RowT]) -> list[RowT]:
        """The answer to each prompt, all asked at the same time."""
        futures = [self._pool.submit(ask, prompt) for prompt in prompts]
        rows: list[RowT] = []
        reasons: dict[int, str] = {}
        try:
            for at, future in enumerate(futures):
                try:
                    rows.append(future.result())
                except (Refused, Unanswered) as error:
                    reasons[at] = str(error)
                    rows.append(())  # an empty row of either kind
        finally:
            for future in futures:
                future.cancel()
        if reasons:
            raise PartlyAnswered(rows, reasons)
        return rows

    def _complete(self, prompt: array[int], **options: object) -> Mapping[str, Any]:
        return first_choice(self._endpoint.ask("/completions", self._dialect.body(prompt, self._text, **options)))

    # Scores.

    def _logprobs(self, prompt: array[int], *, labels: Sequence[Sequence[int]]) -> tuple[float, ...]:
        firsts = {label[0] for label in labels}
        likely = self._next(prompt)
        if len(firsts) == len(labels):
            return tuple(self._of(likely, label[0]) for label in labels)
        # Labels that share a first token: the sum over each one's tokens.
        totals = []
        for label in labels:
            total = self._of(likely, label[0])
            for step in range(1, len(label)):
                if total <= IMPOSSIBLE:
                    break
                total += self._of(self._next(prompt + array("i", label[:step])), label[step])
            totals.append(max(total, IMPOSSIBLE))
        return tuple(totals)

    def _next(self, prompt: array[int]) -> dict[int | str, float]:
        return candidates(self._complete(prompt, max_tokens=1, logprobs=self._dialect.top))

    def _of(self, likely: Mapping[int | str, float], token: int) -> float:
        found = likely.get(token, likely.get(self._text.of([token])))
        return IMPOSSIBLE if found is None or math.isnan(found) else max(found, IMPOSSIBLE)

    def _chosen(self, prompt: array[int], *, labels: Sequence[Sequence[int]]) -> tuple[float, ...]:
        words = [self._text.of(label) for label in labels]
        tokens = max(map(len, labels)) + _SPARE_TOKENS
        written = str(self._complete(prompt, max_tokens=tokens, **self._dialect.binding(words)).get("text", ""))
        # One word may begin with another.
        word = max((word for word in words if written.startswith(word)), key=len, default=None)
        return tuple(0.0 if label == word else IMPOSSIBLE for label in words)


def connect(
    server: ServerSpec,
    folder: Path,
    *,
    probe: array[int],
    labels: Sequence[Sequence[int]],
    max_batch_tokens: int | None = None,
    max_batch_items: int | None = None,
) -> OpenAIEngine:
    """The engine on a server, once it has shown how it wants to be asked; `folder` holds the guard's tokenizer.

    Without `max_batch_tokens` or `max_batch_items` a batch is as large as the number of connections makes it.

    Raises:
        GuardError: nobody answers there, or nobody that can run this guard.
    """
    text = PromptText(folder)
    path = server.api_key_file
    try:
        api_key = path.read_text(encoding="utf-8").strip() if path else None
    except OSError as error:
        raise GuardError(f"the API key cannot be read from {path}: {error.strerror}") from error
    options: dict[str, Any] = {
        "api_key": api_key,
        "connections": server.concurrency,
        "timeout_s": server.request_timeout_s,
    }
    first = Endpoint(server.base_url, **options, outage_s=START_OUTAGE_S)
    try:
        dialect = agree(first, server.model, text, probe, labels)
    except (DeviceLost, Unanswered) as error:
        raise GuardError(
            f"no OpenAI-compatible server to use: {error} (is the address right, with its /v1?)"
        ) from error
    log.info("server_agreed", url=first.url, model=dialect.model, scoring=dialect.scoring, ids=dialect.as_ids)
    return OpenAIEngine(
        Endpoint(server.base_url, **options),
        dialect,
        text,
        concurrency=server.concurrency,
        max_batch_tokens=max_batch_tokens,
        max_batch_items=max_batch_items,
    )
