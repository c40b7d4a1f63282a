"""Speculative decoding: a small model guesses tokens on one device, the target checks them in one pass on another.

The solver chooses the draft, both devices and how many tokens a round guesses, or that the target decodes alone. Its
objective counts rounds of the average yield; ``latency_s`` follows the request to its end, where the last rounds are
shorter (:func:`edgeopt.costs.drafting.expected_request`).
"""

from __future__ import annotations

from typing import ClassVar

import edgeopt
from edgeopt.plan import Plan
from edgeopt.profiles.model import CausalLM
from edgeopt.profiles.problem import Problem, TextWorkload
from edgeopt.strategies.base import Strategy
from edgeopt.strategies.speculative_rounds import Choice, Rounds
from edgeopt.strategies.timeline import lay_out
from edgeopt_solvers import Result
from edgeopt_solvers import policy as family

__all__ = ["Speculative"]


class Speculative(Strategy):
    """Plan which device drafts, which verifies, and how long drafts are."""

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
        if limits.pin or limits.first or limits.last or limits.max_stages or limits.min_segment > 1:
            return "speculative keeps a model on one device: nothing to pin or count (constraints pin, first, stages)"
        if limits.accuracy is not None:
            return "speculative counts no right answers, and constraints.accuracy asks for some"
        if any(medium.sharing == "reserved" for medium in problem.network.media.values()):
            return "speculative reserves no share of a medium, and the network's is shared that way"
        return None

    def build(self, problem: Problem) -> family.Speculative:
        """Build the policy's arrays.

        Raises
        ------
        InputError
            A draft's acceptance was not measured at the workload's temperature, or the vocabulary is not known.
        """
        return Rounds(problem).instance()

    def solution(self, plan: Plan) -> family.SpeculativeSolution:
        """Return the draft, the devices and the length that the plan names."""
        decisions = plan.decisions
        devices = [device.name for device in plan.problem.devices]
        assert isinstance(plan.problem.model, CausalLM)
        length = decisions["draft_length"]
        if isinstance(length, bool) or not isinstance(length, int):
            raise ValueError(f"decisions.draft_length is {length!r}, not a number of tokens")
        target_device = devices.index(decisions["target_device"])  # type: ignore[arg-type]
        if length == 0:
            return family.SpeculativeSolution(-1, -1, 0, target_device, 0)
        draft = list(plan.problem.model.drafts).index(decisions["draft"])  # type: ignore[arg-type]
        draft_device = devices.index(decisions["draft_device"])  # type: ignore[arg-type]
        return family.SpeculativeSolution(draft, draft_device, 0, target_device, length)

    def plan(self, problem: Problem, instance: family.Speculative, result: Result) -> Plan:
        """Write a stage for each model that takes part, the messages between them, and what drafting gains."""
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
        if (alone_s := rounds.alone_s(instance)) is not None:
            metrics |= {"target_alone_s": alone_s, "speed_up": alone_s / latency_s}
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
            notes=chosen.notes(),
        )
