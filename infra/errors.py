"""The one family of errors. Each carries a message for a person and the exit code a script can use."""


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


class GuardError(LibraError):
    """A guard's checkpoint, tokenizer or template cannot do what the guard needs."""

    exit_code = 5


class DeviceError(LibraError):
    """The device process is gone or broken."""

    exit_code = 6


class RunError(LibraError):
    """A run that ended other than asked: cancelled, dead items where none were allowed, a failed gate."""

    exit_code = 7
