"""What all profile files share: strict keys, a source for every number."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

__all__ = ["DType", "Profile", "Provenance", "Strict"]

DType = Literal["float64", "float32", "bfloat16", "float16", "int8", "int4"]

#: Where a number comes from, in words.
Provenance = Annotated[str, StringConstraints(strip_whitespace=True, min_length=3)]


class Strict(BaseModel):
    """Unknown keys are errors; instances are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)


class Profile(Strict):
    """A file of the library: named, described, and every number sourced.

    ``source`` covers every number in the file; ``sources`` overrides it for single fields
    (datasheet, paper table, or "measured" with date and command). How its keys are written:
    :mod:`edgeopt.profiles.sources`.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    description: str = ""
    source: Provenance
    sources: dict[str, Provenance] = {}
