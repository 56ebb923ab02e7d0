"""Faults of the database: which of them pass by themselves, and what of them may be shown.

Postgres quotes values and whole rows in its messages, and these are user text: of an error only the parts that name
our own tables and settings stay.
"""

from __future__ import annotations

from typing import Final

import psycopg
import sqlalchemy as sa

_PASSING_CLASSES: Final = ("08", "40", "53", "55", "57", "58")
"""Connection, rollback, resources, locks, shutdown, input and output."""
_READ_ONLY: Final = "25006"
"""Of a write: the server was a primary and is a replica now, or is closed to writes for a while."""
_IDLE: Final = "25P03"
_LOCK_TIMEOUTS: Final = ("55P03", "57014")
"""Lock not available; statement over its time, as one is that waits behind locks."""
_SPEAKING_CLASSES: Final = ("08", "0A", "23", "25", "26", "28", "3D", "3F", "40", "42", "53", "54", "55", "57", "58")
"""Classes whose first line names tables, constraints and settings, never a value."""


def sqlstate(error: BaseException) -> str | None:
    """Postgres' code of an error, or None where it came from elsewhere."""
    state: str | None = getattr(getattr(error, "orig", error), "sqlstate", None)
    return state


def is_passing(error: BaseException) -> bool:
    """True if waiting can help: the server is away, overloaded, read-only for now, or the pool is exhausted."""
    if isinstance(error, sa.exc.TimeoutError | sa.exc.DisconnectionError):
        return True
    if not isinstance(error, sa.exc.DBAPIError):
        return False
    state = sqlstate(error)
    if state is None:
        return error.connection_invalidated or isinstance(error, sa.exc.OperationalError | sa.exc.InterfaceError)
    return error.connection_invalidated or state.startswith(_PASSING_CLASSES) or state in (_READ_ONLY, _IDLE)


def is_lock_timeout(error: BaseException) -> bool:
    """True if a statement gave up waiting for somebody else."""
    return sqlstate(error) in _LOCK_TIMEOUTS


def describe(error: BaseException) -> str:
    """One line on an error of the database or of its client, without any value that a statement was given."""
    original = getattr(error, "orig", None) or error
    state = sqlstate(original)
    if not isinstance(original, psycopg.Error):
        return type(original).__name__
    if state is None:  # of the client: it names hosts and sockets
        return " ".join(str(original).split())
    if state.startswith(_SPEAKING_CLASSES):
        return f"{original.diag.message_primary} ({state})"
    parts = (original.diag.constraint_name, original.diag.table_name, original.diag.column_name)
    named = ", ".join(part for part in parts if part)
    return f"{type(original).__name__} ({state})" + (f": {named}" if named else "")


def conceal_values(engine: sa.Engine) -> None:
    """Let no error of this engine, nor any error in its chain, show a value; give up connections to a read-only server.

    The driver's own error keeps its `diag`, for code that asks for a field by name.
    """

    def handle(context: sa.engine.ExceptionContext) -> None:
        original = context.original_exception
        if sqlstate(original) == _READ_ONLY:
            context.is_disconnect = True
        if isinstance(original, psycopg.Error):
            text = describe(original)
            original.args = (text,)
            if context.sqlalchemy_exception is not None:
                context.sqlalchemy_exception.args = (f"({type(original).__name__}) {text}",)

    sa.event.listen(engine, "handle_error", handle)
