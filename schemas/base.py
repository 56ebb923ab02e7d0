"""The two pydantic bases: strict frozen data, and the same for what travels between machines."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Immutable data with no coercion and no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
