"""Who is logged in: a random token in the visitor's cookie, its hash in Redis with the id of the key that logged in.

Nothing of the key itself is kept. A session says which key it stands for, not that the key is still good: that is
asked of the ledger at every request.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Final, cast

import redis

_TOKEN_BYTES: Final = 32


def new_token() -> str:
    """A token that nobody can guess."""
    return secrets.token_urlsafe(_TOKEN_BYTES)


def csrf_of(token: str) -> str:
    """What every form carries: only a page of ours can read it, and it gives the cookie's token away to nobody."""
    return hmac.digest(token.encode(), b"console form", "sha256").hex()


def is_csrf_of(token: str, given: str) -> bool:
    """Whether a form was made for the cookie that came with it."""
    return bool(token) and hmac.compare_digest(csrf_of(token).encode(), given.encode())


class Sessions:
    """Sessions of one namespace; each ends by itself `lifetime_s` after its login."""

    def __init__(self, client: redis.Redis, *, namespace: str, lifetime_s: int) -> None:
        self._redis = client
        self._prefix = f"{namespace}:console:session:"
        self._lifetime_s = lifetime_s

    def _key(self, token: str) -> str:
        return self._prefix + hashlib.sha256(token.encode()).hexdigest()

    def begin(self, key_id: str) -> str:
        """Log a key in; returns the cookie's token."""
        token = new_token()
        self._redis.set(self._key(token), key_id, ex=self._lifetime_s)
        return token

    def key_id(self, token: str) -> str | None:
        """The key that a session stands for, or None where there is no such session."""
        return cast("str | None", self._redis.get(self._key(token)))

    def end(self, token: str) -> None:
        """Log out."""
        self._redis.delete(self._key(token))
