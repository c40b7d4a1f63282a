"""Five ways to answer questions in one house: boards, the request, and what each technique makes of them.

The character model fits whole on the slow server alone, halves of it fit the two fast boards, the smaller models of its
family fit everywhere. ``pipeline`` and ``speculative`` answer as the large model would; ``cascade`` and ``routing`` may
be wrong more often, down to a floor. Experts need a mixture, so a second model of about the same size stands for it:
``experts`` beside the ``mixture alone``, its pipeline.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeopt import planner
from edgeopt.errors import NoPlanError
from edgeopt.plan import Plan
from edgeopt.profiler.device import slowed
from edgeopt.profiles import load_device, load_model
from edgeopt.profiles.answers import read_answers
from edgeopt.profiles.device import Device
from edgeopt.profiles.model import CausalLM
from edgeopt.profiles.network import Network
from edgeopt.profiles.problem import Constraints, Problem, TextWorkload

__all__ = ["BOARDS", "EXACT", "METHODS", "Methods", "boards_of"]

#: Speed as a fraction of the fastest board, and memory in bytes. The phone asks.
BOARDS = {"phone": (0.2, 1.0e6), "left": (1.0, 1.5e6), "right": (1.0, 1.5e6), "server": (0.25, 16e6)}
METHODS = ("pipeline", "speculative", "cascade", "routing", "experts", "mixture alone")
#: Methods whose tokens are those of the large model.
EXACT = ("pipeline", "speculative")
#: Accuracy that those which trade it for time must keep, as a part of the large model's.
KEPT = 0.95
#: Fraction of its time that a server which answered everything with the large model would be busy.
LOAD = 0.5


def boards_of(whole: Device) -> list[Device]:
    """Return the boards as parts of the speed of one device."""
    boards = []
    for name, (speed, memory) in BOARDS.items():
        limits = {"memory": memory, "margin": None, "power": None}
        boards.append(slowed(whole, speed, name).model_copy(update=limits))
    return boards


def datasheet_board() -> Device:
    """Return the fastest board as its datasheet has it."""
    device = load_device("raspberry-pi-5-8gb")
    runtime = device.runtime.model_copy(update={"threads": 1})
    return device.model_copy(update={"launch_overhead": 15e-6, "runtime": runtime})


class Methods:
    """Plans of the methods on some boards.

    Parameters
    ----------
    whole
        The fastest board; default: of a datasheet.
    requests
        Queries of a run of ``cascade`` and ``routing``.
    """

    def __init__(self, whole: Device | None = None, requests: int = 100) -> None:
        self.devices = boards_of(whole or datasheet_board())
        self.requests = requests
        self.text, self.mixture = load_model("text"), load_model("mixture")
        assert isinstance(self.text, CausalLM)
        trace = read_answers(self.text)
        self.prompt_tokens, self.new_tokens = int(trace.prompt_tokens.max()), int(trace.tokens.max())
        trace = trace.part("fit")
        large = trace.models.index(self.text.name)
        #: What the large model answers on average: the request of those that answer every query with it.
        self.mean = TextWorkload(
            prompt_tokens=round(float(trace.prompt_tokens.mean())),
            new_tokens=max(2, round(float(trace.tokens[:, large].mean()))),
        )
        self.accuracy = float(np.floor(100 * KEPT * trace.correct[:, large].mean()) / 100)

    def workloads(self) -> list[TextWorkload]:
        """Requests to time: what bounds all, and the average one."""
        return [TextWorkload(prompt_tokens=self.prompt_tokens, new_tokens=self.new_tokens), self.mean]

    def problem(self, method: str, mbit: float, latency_s: float) -> Problem:
        """Return the problem of one method at a rate and a latency of every link."""
        strategy = "pipeline" if method == "mixture alone" else method
        mixture = method in ("experts", "mixture alone")
        limits = Constraints(source="phone", accuracy=None if strategy not in ("cascade", "routing") else self.accuracy)
        load = self.mean
        if limits.accuracy is not None:
            longest = {"prompt_tokens": self.prompt_tokens, "new_tokens": self.new_tokens, "requests": self.requests}
            load = load.model_copy(update=longest)
        wire: dict[str, Any] = {"rate": f"{mbit:g} Mbit/s", "latency": f"{1e3 * latency_s:g} ms"}
        network = Network.model_validate({"name": "house", "source": "assumed for this comparison", "default": wire})
        problem = Problem(
            name=f"house-{method.replace(' ', '-')}", model=self.mixture if mixture else self.text, strategy=strategy,
            devices=self.devices, network=network, objective="latency", workload=load, constraints=limits,
        )  # fmt: skip
        if method == "routing":
            rate = LOAD / self.alone_s(mbit, latency_s)
            problem = problem.model_copy(update={"workload": load.model_copy(update={"requests_per_s": rate})})
        return problem

    def alone_s(self, mbit: float, latency_s: float) -> float:
        """Seconds of an average answer by the large model on the server."""
        problem = self.problem("pipeline", mbit, latency_s)
        limits = problem.constraints.model_copy(update={"max_stages": 1})
        return planner.solve(problem.model_copy(update={"constraints": limits})).latency_s

    def best(self, method: str, mbit: float, latency_s: float) -> Plan | None:
        """Return a method's plan, ``None`` where it has none."""
        try:
            return planner.solve(self.problem(method, mbit, latency_s))
        except NoPlanError:
            return None
