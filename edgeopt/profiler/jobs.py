"""Jobs for measuring processes and what they answer, as JSON over pipes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from edgeopt.plan import Plan
from edgeopt.profiles.base import DType

__all__ = [
    "ElementAnswer", "ElementJob", "ElementSamples", "Failure", "LinkJob", "LinkSamples", "MachineFigures",
    "MachineJob", "parse_job",
]  # fmt: skip


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MachineJob(_Record):
    """Rates of the machine itself, no model."""

    task: Literal["machine"] = "machine"
    threads: int
    dtypes: list[DType]


class MachineFigures(_Record):
    """What a :class:`MachineJob` found. Efficiencies are reached by a block of layers, relative to the peaks."""

    flop_per_s: dict[DType, float]
    memory_bytes_per_s: float
    launch_s: float
    compute_efficiency: float
    memory_efficiency: float
    torch_version: str


class ElementJob(_Record):
    """Run all stages of each plan in one process and time every element of every round."""

    task: Literal["elements"] = "elements"
    threads: int
    plans: list[Plan]
    warmup: int
    repeats: int
    seed: int = 0


class ElementSamples(_Record):
    """Seconds, ``elements_s[request][round][element]``, of whole requests, and what they waited for a core."""

    elements_s: list[list[list[float]]]
    requests_s: list[float]
    waited_s: list[float]


class ElementAnswer(_Record):
    """Samples of each plan of a job."""

    plans: list[ElementSamples]


class LinkJob(_Record):
    """One end of a link: rank 0 sends, rank 1 receives. ``store`` is a file both can reach."""

    task: Literal["link"] = "link"
    threads: int
    rank: Literal[0, 1]
    store: str
    sizes_bytes: list[int]
    repeats: int
    gap_s: float
    timeout_s: float


class LinkSamples(_Record):
    """Monotonic clock readings by size and repeat: starts of sending at rank 0, ends of receiving at rank 1."""

    moments_s: list[list[float]]


class Failure(_Record):
    """Why a job was not done; ``wrong_input``: the request was, not the machine."""

    failure: str
    wrong_input: bool


_JOBS: TypeAdapter[MachineJob | ElementJob | LinkJob] = TypeAdapter(
    Annotated[MachineJob | ElementJob | LinkJob, Field(discriminator="task")]
)


def parse_job(text: bytes) -> MachineJob | ElementJob | LinkJob:
    """Read a job."""
    return _JOBS.validate_json(text)
