"""The pydantic bases: strict frozen data, and the same for what processes of several versions share."""

from typing import Any, Final

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Immutable data with no coercion and no unknown fields.

    Its errors do not show what was read: that may be user text, and errors go to logs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)


class Shared(Frozen):
    """Frozen data that processes of several versions write and read.

    A field that is not known here is passed over, so that a later version may add what an earlier one can do
    without; what changes the meaning of the rest needs a new message version instead.
    """

    model_config = ConfigDict(extra="ignore")


ADDED: Final[dict[str, Any]] = {"exclude_if": lambda value: not value}
"""For a field added to a `Shared` model: not written where it is false or zero, so that nothing changes for readers
older than the field, among them those that refuse what they do not know."""
