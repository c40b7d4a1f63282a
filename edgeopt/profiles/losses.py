"""What is lost by working with less than the whole: stale neighbours of a patch, steps left out, fewer bits."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from edgeopt.profiles.base import DType, Provenance, Strict

__all__ = ["StaleQuality", "StridedLoss", "WeightQuality"]


def _one_loss_for_each(loss: dict[str, list[float]], info: ValidationInfo) -> dict[str, list[float]]:
    """Refuse another number of losses than of warm-ups."""
    count = len(info.data.get("warmup_steps", ()))
    for name, values in loss.items():
        if len(values) != count:
            message, mend = f"{name} has {len(values)} losses for {count} warmup_steps", "give one for each"
            raise PydanticCustomError("loss", "{message}; {mend}", {"message": message, "mend": mend})
    return loss


class StridedLoss(Strict):
    """What asynchronous patches lose, one of which computes every ``stride``-th step; see :class:`StaleQuality`.

    Each loss is the largest over divisions into two patches, by which of them has the stride and with how many rows.
    """

    stride: int = Field(ge=2)
    warmup_steps: list[int] = Field(min_length=1)
    loss: dict[str, list[float]] = Field(min_length=1)
    source: Provenance

    @field_validator("loss")
    @classmethod
    def _one_for_each(cls, loss: dict[str, list[float]], info: ValidationInfo) -> dict[str, list[float]]:
        """Refuse another number of losses than of warm-ups."""
        return _one_loss_for_each(loss, info)


class StaleQuality(Strict):
    """What asynchronous patches lose: by how much the metric of ``quality`` rises.

    ``loss[variant][i]`` belongs to runs that begin with ``warmup_steps[i]`` synchronous steps of ``steps``; in runs of
    more steps the context changes less from one to the next. Measured with ``patches`` equal patches.
    ``strided`` says the same of runs in which one of two patches leaves steps out.
    """

    steps: int = Field(ge=1)
    patches: int = Field(ge=2)
    warmup_steps: list[int] = Field(min_length=1)
    loss: dict[str, list[float]] = Field(min_length=1)
    strided: list[StridedLoss] = []
    source: Provenance

    @field_validator("loss")
    @classmethod
    def _one_for_each(cls, loss: dict[str, list[float]], info: ValidationInfo) -> dict[str, list[float]]:
        """Refuse another number of losses than of warm-ups."""
        return _one_loss_for_each(loss, info)


class WeightQuality(Strict):
    """What a language model loses where layers' matrices are stored in fewer bits: the losses of layers add up.

    ``loss[format]`` has a value for each element (embedding, every block, head): the metric with that one stored so and
    no other. ``whole[format]`` was measured with all of them stored so. ``margin`` is the fraction by which what is
    measured may exceed the sum: plans that have to keep a quality leave it.
    """

    form: Literal["weights"]
    metric: str
    loss: dict[DType, list[Annotated[float, Field(ge=0)]]] = Field(min_length=1)
    whole: dict[DType, float] = {}
    margin: float | None = Field(default=None, ge=0)
    source: Provenance
