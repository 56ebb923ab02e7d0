"""One OpenAI-compatible server over HTTP: bounded connections, time-outs, retries.

Failures are distinguished by their possible cause: the prompt, or the server. A prompt is given up after a few answers
that it may have caused (500, a time-out, a broken answer), at once where the server refuses it. A server that is away,
overloaded or refuses *us* costs no prompt: after a while the device counts as lost.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

from infra.errors import DeviceError, GuardError
from infra.log import get_logger
from worker.device.engines.base import DeviceLost
from worker.device.spec import ATTEMPTS, OUTAGE_S

try:
    import httpx2
except ImportError as missing:
    raise GuardError("--engine openai needs an HTTP client: pip install 'libra-fleet[openai]'") from missing

log = get_logger(__name__)

FIRST_PAUSE_S: Final = 0.25
LONGEST_PAUSE_S: Final = 15.0
CONNECT_TIMEOUT_S: Final = 5.0

_RETRYABLE: Final = frozenset({429, 502, 503, 504})
_POSSIBLY_PROMPT_CAUSED: Final = frozenset({408, 500})
_AUTH_OR_CONFIG: Final = frozenset({401, 403, 404})
_MAX_MESSAGE: Final = 200


class Refused(DeviceError):  # noqa: N818 - what the server did, not a failure of ours
    """The server will not answer this request, however often it is sent."""


class Unanswered(DeviceError):  # noqa: N818 - likewise
    """The request failed too often."""


@dataclass(frozen=True, slots=True)
class _Trouble:
    """An attempt that failed and may be repeated."""

    reason: str
    possibly_prompt_caused: bool
    retry_after_s: float = 0.0


class Endpoint:
    """Sends requests to one server, as often as needed. Thread-safe.

    `sleep` is how it waits between attempts.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        connections: int = 16,
        timeout_s: float = 60.0,
        outage_s: float = OUTAGE_S,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url = base_url.rstrip("/")
        self.outage_s = outage_s
        self._sleep = sleep
        self._random = random.Random()  # noqa: S311 - jitter, not a secret
        self._http = httpx2.Client(
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx2.Timeout(timeout_s, connect=min(CONNECT_TIMEOUT_S, timeout_s)),
            limits=httpx2.Limits(max_connections=connections, max_keepalive_connections=connections),
            trust_env=False,  # the environment is read in infra.settings only
        )

    def ask(self, path: str, body: Mapping[str, object] | None = None) -> dict[str, Any]:
        """POST a body, or GET where there is none; returns the JSON object that comes back.

        Raises:
            Refused: the server says that the request is wrong.
            Unanswered: a few attempts failed in ways that may be the request's own doing.
            DeviceLost: the server is away, stays overloaded, or refuses every request of ours.
        """
        began = time.monotonic()
        blamed = 0
        waited_s = 0.0
        for attempt in itertools.count(1):
            try:
                response = self._http.request("GET" if body is None else "POST", f"{self.url}{path}", json=body)
                outcome = self._read(response)
            except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout) as error:
                outcome = _Trouble(f"no connection: {error or type(error).__name__}", possibly_prompt_caused=False)
            except httpx2.TimeoutException:
                outcome = _Trouble("no answer in time", possibly_prompt_caused=True)
            except httpx2.TransportError as error:
                reason = f"the connection broke: {error or type(error).__name__}"
                outcome = _Trouble(reason, possibly_prompt_caused=True)
            if not isinstance(outcome, _Trouble):
                return outcome
            blamed += outcome.possibly_prompt_caused
            if blamed >= ATTEMPTS:
                raise Unanswered(f"{outcome.reason}; {attempt} attempts")
            # Doubling, between half and the whole of it at random; never before the server wants to be asked again.
            backoff_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(attempt - 1, 16))
            pause_s = max(outcome.retry_after_s, 0.0) + backoff_s * self._random.uniform(0.5, 1.0)
            if max(waited_s, time.monotonic() - began) + pause_s > self.outage_s:
                raise DeviceLost(f"{self.url}: {outcome.reason}; {attempt} attempts")
            log.info("request_repeated", reason=outcome.reason, attempt=attempt, pause_s=round(pause_s, 2))
            self._sleep(pause_s)
            waited_s += pause_s
        raise AssertionError("unreachable")

    def _read(self, response: httpx2.Response) -> dict[str, Any] | _Trouble:
        status = response.status_code
        if status in _RETRYABLE or status in _POSSIBLY_PROMPT_CAUSED:
            return _Trouble(_message(response), status in _POSSIBLY_PROMPT_CAUSED, _retry_after_s(response))
        if status in _AUTH_OR_CONFIG:
            raise DeviceLost(f"{self.url}: {_message(response)}")
        if not response.is_success:
            raise Refused(_message(response))
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            return _Trouble("the answer is no JSON object", possibly_prompt_caused=True)
        return answer


def _message(response: httpx2.Response) -> str:
    """Status and what the server said of it, in one short line; never what it was sent."""
    try:
        content = response.json()
        error = content.get("error", content)
        said = error.get("message", "") if isinstance(error, dict) else error
    except (ValueError, AttributeError):
        said = response.text
    line = " ".join(str(said).split())[:_MAX_MESSAGE]
    return (
        f"the server answered {response.status_code}: {line}" if line else f"the server answered {response.status_code}"
    )


def _retry_after_s(response: httpx2.Response) -> float:
    """Retry-After, which is a number of seconds or a date; 0 where there is none."""
    value: str = response.headers.get("retry-after", "0").strip()
    try:
        if value[:1].isdigit():
            return float(value)
        at: datetime = parsedate_to_datetime(value)
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() - datetime.now(UTC).timestamp()
    except ValueError:
        return 0.0
