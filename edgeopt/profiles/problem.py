"""Problem: which model, on which devices, over which network, to what end. Fully resolved: no names left to look up."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from edgeopt.profiles.base import DType, Strict
from edgeopt.profiles.device import Device
from edgeopt.profiles.model import Model
from edgeopt.profiles.network import Network
from edgeopt.units import Joules, RequestsPerSecond, Seconds

__all__ = [
    "CascadeWorkload", "Constraints", "Drafting", "ExpertsOptions", "ImageWorkload", "Objective", "PatchOptions",
    "Problem", "RoutingOptions", "TextWorkload", "Workload",
]  # fmt: skip

Metric = Literal["latency", "throughput", "energy", "quality"]
#: Of a language model alone: seconds until the first token, and for each later one.
TokenMetric = Literal["ttft", "tpot"]

_ASYNCHRONOUS = "use mode: asynchronous"


def _objective(value: Any) -> Any:
    """Check a metric or weights here, so that one message tells what pydantic would say twice for a union."""
    metrics = get_args(Metric)
    if isinstance(value, dict):
        for metric, weight in value.items():
            if metric not in metrics:
                raise _refuse(f"'{metric}' is not a metric", f"known: {', '.join(metrics)}")
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight):
                raise _refuse(f"the weight '{weight}' of {metric} is not a number", "write `latency: 1.0`")
            if weight < 0:
                raise _refuse(f"the weight {weight} of {metric} is negative", "use weights of zero or more")
        if not any(value.values()):
            raise _refuse("no weight is positive", "give at least one metric a positive weight")
    elif value not in (goals := (*metrics, *get_args(TokenMetric))):
        raise _refuse(
            f"'{value}' is not a metric",
            f"write one of {', '.join(goals)}, or weights: `{{latency: 1, energy: 0.1}}`",
        )
    return value


def _refuse(message: str, mend: str) -> PydanticCustomError:
    return PydanticCustomError("objective", "{message}; {mend}", {"message": message, "mend": mend})


Objective = Annotated[Metric | TokenMetric | dict[Metric, float], BeforeValidator(_objective)]
"""One metric, or weights of several."""


class TextWorkload(Strict):
    """Generate ``new_tokens`` after a prompt: one prefill that yields the first token, then decode rounds.

    ``temperature`` 0 takes the likeliest token each time; above, tokens are sampled. With ``prefill_chunk`` the
    strategy ``pipeline`` sends so many tokens of the prompt at a time down its stages, which then work on different
    chunks at the same time; ``auto`` leaves their number to it.

    With ``requests_per_s`` such requests arrive by themselves, at random times of that mean rate (Poisson), and queue;
    a run of the plan serves ``requests`` of them. Without, one request is made after the other.
    """

    kind: Literal["text"] = "text"
    prompt_tokens: int = Field(ge=1)
    new_tokens: int = Field(ge=1)
    batch: int = Field(default=1, ge=1)
    temperature: float = Field(default=0.0, ge=0)
    prefill_chunk: Literal["auto"] | Annotated[int, Field(ge=1)] | None = None
    requests_per_s: RequestsPerSecond | None = None
    requests: int = Field(default=100, ge=1)

    @property
    def chunks(self) -> list[int]:
        """Tokens of the prompt by round; all in one where no chunk is decided."""
        size = self.prefill_chunk if isinstance(self.prefill_chunk, int) else self.prompt_tokens
        whole, rest = divmod(self.prompt_tokens, size)
        return [size] * whole + [rest] * (rest > 0)


class ImageWorkload(Strict):
    """Denoise ``images`` in ``steps`` steps; ``guidance`` above 1 doubles the batch of every step."""

    kind: Literal["image"] = "image"
    steps: int = Field(ge=1)
    images: int = Field(default=1, ge=1)
    guidance: float = Field(default=1.0, ge=0)
    seed: int = 0


class Drafting(Strict):
    """How the strategy ``speculative`` may draft: from ``min_length`` (0: not at all) to ``max_length`` tokens a round.

    ``adaptive`` lets a run change the length within these limits: a draft stops when it doubts its guesses (sampled
    ones are one longer after a draft that was taken whole, one shorter after another). The plan still counts with one
    length.
    """

    min_length: int = Field(default=0, ge=0)
    max_length: int = Field(default=12, ge=1, le=64)
    adaptive: bool = False


class PatchOptions(Strict):
    """How a latent is shared out in patches.

    ``synchronous`` patches give the result of the whole image; ``asynchronous`` ones know of each other what was one
    step ago, but for the first ``warmup_steps``. ``devices`` are those that share; default: whichever are worth it.
    Where ``max_stride`` is above 1, slower devices may compute only every second (or fourth) asynchronous step;
    ``strides`` says it for each of ``devices``, default: whichever are best.
    """

    mode: Literal["synchronous", "asynchronous"] = "synchronous"
    warmup_steps: int = Field(default=4, ge=1)
    devices: list[str] = []
    max_stride: Literal[1, 2, 4] = 1
    strides: list[Literal[1, 2, 4]] = []

    @model_validator(mode="after")
    def _strides_fit(self) -> PatchOptions:
        """Refuse strides of synchronous patches, of nobody, above the largest, or of everybody."""
        message = mend = ""
        if self.max_stride > 1 and self.mode == "synchronous":
            message, mend = f"max_stride {self.max_stride} leaves steps out, and mode is synchronous", _ASYNCHRONOUS
        elif self.strides and len(self.strides) != len(self.devices):
            message = f"there are {len(self.strides)} strides for {len(self.devices)} devices"
            mend = "give one for each of constraints.patch.devices"
        elif self.strides and max(self.strides) > self.max_stride:
            message, mend = f"a stride is {max(self.strides)}, max_stride is {self.max_stride}", "raise max_stride"
        elif self.strides and min(self.strides) > 1:
            message, mend = f"no device takes all steps: strides {self.strides}", "lower workload.steps"
        if message:
            raise PydanticCustomError("strides", "{message}; {mend}", {"message": message, "mend": mend})
        return self


class RoutingOptions(Strict):
    """How the strategy ``routing`` tells queries apart, and may load devices: to ``max_load`` of their time at most.

    ``by`` their recorded class, or by the family's router, whose predicted gains are cut into ``bins`` (default 6).
    ``accuracy`` is the least fraction of right answers in single classes of queries, by name.
    """

    by: Literal["class", "router"] = "class"
    bins: int | None = Field(default=None, ge=1, le=64)
    max_load: float = Field(default=0.95, gt=0, le=1)
    accuracy: dict[str, Annotated[float, Field(gt=0, le=1)]] = {}

    @model_validator(mode="after")
    def _fits(self) -> RoutingOptions:
        """Refuse bins of classes, and floors of classes that nobody knows when a query arrives."""
        message = mend = ""
        if self.bins is not None and self.by == "class":
            message, mend = f"bins is {self.bins}, and queries are told apart by class", "add by: router, or leave it"
        elif self.accuracy and self.by == "router":
            message = f"accuracy has floors of classes ({', '.join(self.accuracy)}), and a router knows no class"
            mend = "use constraints.accuracy, or by: class"
        if message:
            raise PydanticCustomError("routing", "{message}; {mend}", {"message": message, "mend": mend})
        return self


class ExpertsOptions(Strict):
    """How the strategy ``experts`` may place a mixture's experts.

    ``trunk`` is the device of everything but the experts; default: whichever is best. ``max_replicas`` is the most
    copies of one expert. ``weights`` are the formats in which devices store what they hold, for example
    ``{phone: int4}``; a device that is not named stores it in the model's dtype. Default: decided, where
    ``constraints.quality`` says what may be lost, else all in the model's dtype.
    """

    trunk: str | None = None
    max_replicas: int | None = Field(default=None, ge=1)
    weights: dict[str, DType] | None = None


class CascadeWorkload(Strict):
    """Denoise ``images`` through every level of a cascade.

    ``steps`` has one number per level; without it they are part of the decision, among those that were measured.
    ``guidance`` above 1 doubles the batch of every step.
    """

    kind: Literal["cascade"] = "cascade"
    steps: list[Annotated[int, Field(ge=1)]] | None = None
    images: int = Field(default=1, ge=1)
    guidance: float = Field(default=1.0, ge=0)
    seed: int = 0


Workload = TextWorkload | ImageWorkload | CascadeWorkload


class Constraints(Strict):
    """Budgets, pins and the source. Devices by name, elements by name or index.

    ``accuracy`` is the least fraction of right answers. ``thresholds`` are those of the strategy ``cascade``, by model:
    a query goes no further than a model that is at least so confident; default: whichever are best.
    """

    source: str | None = None
    deadline: Seconds | None = None
    period: Seconds | None = None
    energy: Joules | None = None
    quality: float | None = None
    accuracy: float | None = Field(default=None, gt=0, le=1)
    thresholds: dict[str, Annotated[float, Field(ge=0, le=1)]] = {}
    max_stages: int | None = Field(default=None, ge=1)
    min_segment: int = Field(default=1, ge=1)
    first: str | None = None
    last: str | None = None
    pin: dict[str, str] = {}
    forbid: list[str] = []
    drafting: Drafting = Drafting()
    patch: PatchOptions = PatchOptions()
    routing: RoutingOptions = RoutingOptions()
    experts: ExpertsOptions = ExpertsOptions()


class Problem(Strict):
    """Everything a strategy needs; the first device is the source unless ``constraints.source`` names another."""

    name: str
    description: str = ""
    model: Annotated[Model, Field(discriminator="family")]
    strategy: str = "auto"
    workload: Annotated[Workload, Field(discriminator="kind")]
    devices: list[Device] = Field(min_length=1)
    network: Network
    objective: Objective = "latency"
    constraints: Constraints = Constraints()
