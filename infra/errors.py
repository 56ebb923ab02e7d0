"""The one family of errors. Each carries a message for a person and the exit code a script can use."""

from collections.abc import Mapping


class LibraError(Exception):
    """Base of every error this project raises on purpose."""

    exit_code = 1


class UsageError(LibraError):
    """The user asked for something impossible: an unknown guard, a bad option, a run that is not there."""

    exit_code = 2


class DataError(LibraError):
    """A data set that cannot be read as it is; the message names file and line, or field."""

    exit_code = 3


class ServerError(LibraError):
    """Redis or Postgres cannot be reached, or refuses what we need."""

    exit_code = 4


class ItemLostError(ServerError):
    """An item that was accepted is not in the ledger any more, which lost its last commits: send it again."""


class GuardError(LibraError):
    """A guard's checkpoint, tokenizer or template cannot do what the guard needs."""

    exit_code = 5


class DeviceError(LibraError):
    """The device process is gone or broken."""

    exit_code = 6


class DeviceAwayError(DeviceError):
    """No device process answers for now.

    `suspects`: by index the prompts in whose batch one died, and how often it died of them alone.
    """

    def __init__(self, message: str, suspects: Mapping[int, int] | None = None) -> None:
        super().__init__(message)
        self.suspects = dict(suspects or {})


class DeviceProtocolError(DeviceError):
    """The device process is of another version than this process."""

    exit_code = 8


class DeviceChangedError(DeviceError):
    """The device process holds another model than the one this process knows: its checkpoint was replaced."""

    exit_code = 9


class RunError(LibraError):
    """A run that ended other than asked: cancelled, dead items where none were allowed, a failed gate."""

    exit_code = 7


class LedgerOutdatedError(ServerError):
    """The ledger's schema is not the one that this version needs."""


class NotFoundError(UsageError):
    """The run, item, key, policy or endpoint that was named is not in the ledger."""


class RunNotFoundError(NotFoundError):
    """No run has this id or name."""


class ItemNotFoundError(NotFoundError):
    """No such item came through the gateway."""


class KeyNotFoundError(NotFoundError):
    """No API key has this id."""


class PolicyNotFoundError(NotFoundError):
    """No policy has this name, or it has no such version."""


class EndpointNotFoundError(NotFoundError):
    """No webhook endpoint has this id."""


class TakenError(UsageError):
    """The name of a run, or the version of a policy, stands for another one already."""


class RunEndedError(UsageError):
    """The run has ended, so that it can no longer be cancelled."""
