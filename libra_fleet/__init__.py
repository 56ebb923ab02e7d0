"""Libra Fleet's Python API: the clients of a gateway, the items they send, the verdicts and errors they return.

from libra_fleet import Client

with Client("http://127.0.0.1:8000", api_key) as client:
    print(client.judge("要审核的文本").label)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from libra_fleet.client import (
        AsyncClient,
        AuthenticationError,
        BadRequestError,
        Client,
        ClientError,
        GatewayTimeoutError,
        ItemRequest,
        ItemVerdict,
        VerdictTimeoutError,
    )

__all__ = [
    "AsyncClient",
    "AuthenticationError",
    "BadRequestError",
    "Client",
    "ClientError",
    "GatewayTimeoutError",
    "ItemRequest",
    "ItemVerdict",
    "VerdictTimeoutError",
]


def __getattr__(name: str) -> object:
    """Load the client when it is first asked for: the `libra` command is in this package too and needs no HTTP."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("libra_fleet.client"), name)
