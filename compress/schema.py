"""The base of everything that users write: strict, frozen, closed."""

from pydantic import BaseModel, ConfigDict


class Schema(BaseModel):
    """A record from a file: unknown keys, wrong types and later changes are all errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
