"""The base of every configuration and manifest object, and numbers in them that may be missing.

Tested in tests/unit/test_gate.py.
"""

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict

from harps_dist.text import number


class Frozen(BaseModel):
    """Immutable, validated, and refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Number = Annotated[float, BeforeValidator(number)]
