"""Whether a process of this host is alive, by the board: what a container's health check asks."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, Literal

Role = Literal["worker", "collector", "gateway", "webhooks"]

_ID_OF: Final[dict[Role, str]] = {
    "worker": r"{host}-\d+-\d+",
    "collector": r"collector-{host}-\d+",
    "gateway": r"gateway-{host}-\d+",
    "webhooks": r"webhooks-{host}-\d+",
}
"""How the processes of a host name themselves on the board."""


def is_ready(announced: Iterable[dict[str, object]], role: Role, host: str) -> bool:
    """Whether the announcements hold a ready process of this role on this host."""
    pattern = re.compile(_ID_OF[role].format(host=re.escape(host)))
    return any(facts.get("state") == "ready" and pattern.fullmatch(str(facts.get("id"))) for facts in announced)
