"""Access rights: an API key has one role, a role is a set of scopes."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

from pydantic import StringConstraints

Tenant = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_]{0,62}$", strict=True)]
"""A tenant's name; items and keys belong to one. No hyphen: run names have one after the tenant."""


class Scope(StrEnum):
    """The right that a request needs."""

    MODERATE = "moderate"
    """Submit texts of its own tenant."""
    READ = "read"
    """See items, verdicts, runs and metrics of its own tenant."""
    DECIDE = "decide"
    """Decide items under review and store human labels."""
    ADMIN = "admin"
    """See and change what belongs to every tenant."""


class Role(StrEnum):
    """The role of a key."""

    SERVICE = "service"
    """A platform's own programs."""
    VIEWER = "viewer"
    """A person who looks."""
    MODERATOR = "moderator"
    """A person who decides."""
    ADMIN = "admin"
    """An operator of the whole fleet."""

    @property
    def scopes(self) -> frozenset[Scope]:
        """The scopes of this role."""
        return _SCOPES[self]


_SCOPES: Final = {
    Role.SERVICE: frozenset({Scope.MODERATE, Scope.READ}),
    Role.VIEWER: frozenset({Scope.READ}),
    Role.MODERATOR: frozenset({Scope.READ, Scope.MODERATE, Scope.DECIDE}),
    Role.ADMIN: frozenset(Scope),
}
