"""Plan: what runs where, what it will cost, and the proof. Written before a run and never adjusted by it.

A plan file carries the resolved problem, so that it can be verified, executed and questioned on its own.
Numbers are SI floats and their names carry the unit.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, JsonValue, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from edgeopt.profiles.problem import Problem

__all__ = ["FORMAT", "Alternative", "Interval", "Plan", "Purpose", "Stage", "Transfer"]

FORMAT = "edgeopt-plan/1"


class _Record(BaseModel):
    # JSON has no infinity: as text it comes back, as null it would not.
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


Purpose = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9 _-]*$", max_length=60)]
"""Why something crosses a link: ``input``, ``cut``, ``loop`` and ``output`` of a chain, or a technique's own word."""


def _finite_data(value: Any) -> Any:
    """Refuse in decisions what JSON cannot say, wherever it stands."""
    if isinstance(value, float) and not math.isfinite(value):
        raise _refuse(f"{value} is not a finite number")
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _finite_data(item)
    return value


class Stage(_Record):
    """Elements ``start`` to ``stop`` (half open) on one device with one variant.

    Of a technique that is no chain it is one party's part, which ``elements`` says in words; ``start`` and ``stop``
    count what its technique shares out (rows, layers, experts), and stages may overlap.
    ``transfer_s`` and ``transfer_bytes`` are what arrives before the stage; ``compute_s`` is summed over rounds.
    """

    index: int
    device: str
    variant: str | None
    start: int
    stop: int
    elements: str
    compute_s: float
    transfer_s: float
    transfer_bytes: float
    memory_bytes: float


class Transfer(_Record):
    """Everything that crosses one cut (or returns in the loop) per request, over all rounds.

    Where a technique is no chain: everything that one device sends another for one purpose; ``cut`` is 0.
    ``share`` is what it holds of a reserved ``medium`` (1 elsewhere), ``rate_bytes_per_s`` its rate with that share.
    """

    purpose: Purpose
    cut: int = 0
    source: str
    destination: str
    bytes: float
    messages: float
    seconds: float
    medium: str | None = None
    share: float = 1.0
    rate_bytes_per_s: float | None = None


class Interval(_Record):
    """One bar of the predicted timeline: a device computing, or a link carrying."""

    lane: str
    label: str
    start_s: float
    stop_s: float


class Alternative(_Record):
    """Another strategy for the same problem, and how it fared in the same time.

    ``outcome`` is a plan's status, or ``closed`` (its bound is above a plan at hand, which ``remark`` names),
    ``infeasible`` or ``refused``. ``traffic_bytes`` is all that crosses links per request, ``memory_bytes`` the most
    that one device holds. Figures are ``None`` without a plan, and where the profiles do not carry what they need.
    """

    strategy: str
    outcome: Literal["optimal", "gap_reached", "time_limit", "closed", "infeasible", "refused"]
    objective: float | None = None
    bound: float | None = None
    gap: float | None = None
    latency_s: float | None = None
    throughput_per_s: float | None = None
    energy_j: float | None = None
    quality: float | None = None
    traffic_bytes: float | None = None
    memory_bytes: float | None = None
    devices: list[str] = []
    runtime_s: float = 0.0
    remark: str = ""


class Plan(_Record):
    """The decision, its predicted cost by term, and how good it provably is.

    ``cuts``, ``devices`` and ``variants`` are the decisions of a chain, an entry for each stage; a technique that is no
    chain leaves them empty and writes its own into ``decisions``: numbers, text, lists and mappings of them.
    """

    format: Literal["edgeopt-plan/1"] = FORMAT
    edgeopt_version: str
    problem: Problem
    strategy: str
    backend: str
    status: Literal["optimal", "infeasible", "time_limit", "gap_reached"]
    objective: float
    bound: float
    gap: float
    runtime_s: float
    latency_s: float
    throughput_per_s: float
    energy_j: float | None = None
    quality: float | None = None
    metrics: dict[str, float] = {}
    cuts: list[int] = []
    devices: list[int] = []
    variants: list[int] = []
    decisions: Annotated[dict[str, JsonValue], BeforeValidator(_finite_data)] = {}
    shares: list[float] | None = None
    stages: list[Stage]
    transfers: list[Transfer]
    timeline: list[Interval] = []
    notes: list[str] = []
    alternatives: list[Alternative] = []

    @model_validator(mode="after")
    def _has_decisions(self) -> Plan:
        """Refuse a chain's decisions that do not fit together, and a plan without any."""
        lengths = {len(self.cuts), len(self.devices), len(self.variants)}
        if len(lengths) > 1:
            message = f"{len(self.cuts)} cuts, {len(self.devices)} devices and {len(self.variants)} variants"
            raise _refuse(f"{message}: a chain has one of each for every stage")
        if not self.cuts and not self.decisions:
            raise _refuse("neither cuts, devices and variants nor decisions are given")
        return self

    @property
    def is_chain(self) -> bool:
        """Whether stages follow each other as segments of a chain."""
        return bool(self.cuts)

    def digest(self) -> str:
        """Return a SHA-256 over the plan's content, quoted by reports of its execution; alternatives are no part."""
        # Plans of chains keep the digest that they had before other techniques had decisions.
        left_out = {"alternatives"} if self.decisions else {"alternatives", "decisions"}
        content = self.model_dump(mode="json", by_alias=True, exclude=left_out)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _refuse(message: str) -> PydanticCustomError:
    mend = "write the plan with edgeopt solve"
    return PydanticCustomError("decisions", "{message}; {mend}", {"message": message, "mend": mend})
