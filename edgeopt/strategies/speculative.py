"""Speculative decoding: a small model guesses tokens on one device, the target checks them in one pass on others.

The solver chooses the draft and its device, how many tokens a round guesses, or that the target decodes alone, and
where the target is: whole on one device, or cut into stages on several, each with the cache of its own layers. Its
objective counts rounds of the average yield; ``latency_s`` follows the request to its end, where the last rounds are
shorter (:func:`edgeopt.costs.drafting.expected_request`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import edgeopt
from edgeopt.plan import Plan
from edgeopt.profiles.model import CausalLM
from edgeopt.profiles.problem import Problem, TextWorkload
from edgeopt.strategies.base import Strategy
from edgeopt.strategies.speculative_choice import Choice, alone_s
from edgeopt.strategies.speculative_rounds import Rounds
from edgeopt.strategies.timeline import lay_out
from edgeopt_solvers import Result
from edgeopt_solvers import policy as family

__all__ = ["Speculative"]


class Speculative(Strategy):
    """Plan which device drafts, which ones verify, and how long drafts are."""

    name: ClassVar[str] = "speculative"

    def unfit(self, problem: Problem) -> str | None:
        """Refuse models without drafts, batches, and what its cost does not count."""
        model, load, limits = problem.model, problem.workload, problem.constraints
        if not (isinstance(model, CausalLM) and isinstance(load, TextWorkload)):
            return f"speculative drafts for language models; {model.name!r} is a {model.family} model"
        if not model.drafts:
            return f"speculative needs a draft of the same tokenizer, and {model.name!r} names none under `drafts:`"
        if load.requests_per_s is not None:
            return "speculative queues nothing, and requests arrive by themselves (workload.requests_per_s)"
        if load.batch > 1 or load.new_tokens < 2:
            return "speculative serves one sequence of at least two new tokens (workload.batch, new_tokens)"
        if problem.objective not in ("latency", "throughput") or limits.energy is not None or limits.quality:
            return "speculative makes requests short; it weighs neither energy nor quality against time"
        if limits.pin or limits.first or limits.last or limits.min_segment > 1:
            return "speculative cuts a target as it likes: nothing to pin (constraints pin, first, last, min_segment)"
        if limits.accuracy is not None:
            return "speculative counts no right answers, and constraints.accuracy asks for some"
        if any(medium.sharing == "reserved" for medium in problem.network.media.values()):
            return "speculative reserves no share of a medium, and the network's is shared that way"
        return None

    def build(self, problem: Problem) -> family.StagedSpeculative:
        """Build the policy's arrays.

        Raises
        ------
        InputError
            A draft's acceptance was not measured at the workload's temperature, or the vocabulary is not known.
        """
        return Rounds(problem).instance()

    def describe(self, problem: Problem) -> Callable[[str], str]:
        """Name devices, and say what mends a target or a draft that fits nowhere."""
        named = super().describe(problem)
        mend = "; add a device, raise `memory` of one (devices), or take a smaller model or dtype"
        return lambda message: named(message) + (mend if message.startswith("memory: ") else "")

    def solution(self, plan: Plan) -> family.StagedSolution:
        """Return the draft, the devices, the cuts and the length that the plan names."""
        decisions: dict[str, Any] = plan.decisions
        devices = [device.name for device in plan.problem.devices]
        assert isinstance(plan.problem.model, CausalLM)
        length, cuts = decisions["draft_length"], decisions["target_cuts"]
        for value in (length, *cuts):
            if isinstance(value, bool) or not isinstance(value, int):
                kind = "decisions.draft_length" if value is length else "decisions.target_cuts"
                raise ValueError(f"{kind} is {value!r}, not a number of {'tokens' if value is length else 'elements'}")
        target = tuple(devices.index(name) for name in decisions["target_devices"])
        if length == 0:
            return family.StagedSolution(-1, -1, 0, tuple(cuts), target)
        draft = list(plan.problem.model.drafts).index(decisions["draft"])
        return family.StagedSolution(draft, devices.index(decisions["draft_device"]), length, tuple(cuts), target)

    def plan(self, problem: Problem, instance: family.StagedSpeculative, result: Result) -> Plan:
        """Write a stage for each part of a model, the messages between them, and what drafting gains."""
        rounds = Rounds(problem)
        chosen = Choice(rounds, instance, result.solution)
        latency_s, ttft_s = chosen.latency_s, chosen.ttft_s
        load = rounds.load
        metrics = {
            "ttft_s": ttft_s,
            "tpot_s": (latency_s - ttft_s) / (load.new_tokens - 1),
            "tokens_per_s": load.new_tokens / latency_s,
            "rounds": chosen.expected.rounds,
        }
        if (alone := alone_s(rounds, instance)) is not None:
            metrics |= {"target_alone_s": alone, "speed_up": alone / latency_s}
        return Plan(
            edgeopt_version=edgeopt.__version__,
            problem=problem,
            strategy=self.name,
            backend=result.backend,
            status=result.status.reason,
            objective=result.objective,
            bound=result.bound,
            gap=result.gap,
            runtime_s=result.runtime_s,
            latency_s=latency_s,
            throughput_per_s=1.0 / latency_s,
            metrics=metrics,
            decisions=chosen.decisions(),
            stages=chosen.stages(),
            transfers=chosen.transfers,
            timeline=lay_out(chosen.bars()),
            notes=chosen.notes(proven=result.status.reason == "optimal"),
        )
