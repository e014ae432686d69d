"""The base of every configuration and manifest object."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Immutable, validated, and refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")
