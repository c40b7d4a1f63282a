"""Layer split of a language model: contiguous blocks on devices, hidden states travel, sampled tokens return.

Chain elements are the embedding, the blocks and the head; compute is one prefill plus the decode rounds; each
inner cut carries one message a round; every sampled token returns from the last stage to the first (the loop).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np

from edgeopt.costs.language import LanguageCosts
from edgeopt.plan import Plan
from edgeopt.profiles.device import Device
from edgeopt.profiles.model import CausalLM
from edgeopt.profiles.problem import Problem, TextWorkload
from edgeopt.strategies.base import Strategy
from edgeopt.strategies.chain import able_devices, chain_plan, compute_table, shared_arguments, transfers_of
from edgeopt.strategies.timeline import Bar, link_lane
from edgeopt_solvers import Result
from edgeopt_solvers.chain import Chain, Solution

__all__ = ["Pipeline", "basis_notes"]


class Pipeline(Strategy):
    """Plan a language model's layers over devices."""

    name: ClassVar[str] = "pipeline"

    def unfit(self, problem: Problem) -> str | None:
        """Refuse everything that is not a language model with a text workload, or is to be sampled."""
        if isinstance(problem.model, CausalLM) and isinstance(problem.workload, TextWorkload):
            if problem.workload.temperature > 0:
                return f"pipeline takes the likeliest token; workload.temperature is {problem.workload.temperature:g}"
            if problem.workload.requests_per_s is not None:
                return "pipeline queues nothing, and requests arrive by themselves (workload.requests_per_s)"
            if problem.constraints.accuracy is not None:
                return "pipeline counts no right answers, and constraints.accuracy asks for some"
            return None
        return f"pipeline splits language models; {problem.model.name!r} is a {problem.model.family} model"

    def build(self, problem: Problem) -> Chain:
        """Build the chain of layers; ``reuse`` is ``once``, since a layer's cache lives where the layer lives."""
        costs = _costs(problem)
        arguments = shared_arguments(problem, costs.names)
        # A device that waits for a message computes slower at first: the solver sees it as part of the way there.
        arguments["latency_s"] = arguments["latency_s"] + _wake_s(problem)
        return Chain(
            compute_s=compute_table(problem, lambda device: _request_s(costs, device)),
            cut_bytes=costs.cut_bytes,
            cut_messages=costs.cut_messages,
            resident_bytes=costs.resident_bytes,
            transient_bytes=costs.transient_bytes,
            loop_bytes=costs.loop_bytes,
            loop_messages=float(costs.num_decode_rounds),
            reuse="once",
            **arguments,
        )

    def plan(self, problem: Problem, chain: Chain, result: Result) -> Plan:
        """Add TTFT, TPOT and tokens per second; the timeline shows the first two rounds."""
        costs = _costs(problem)
        able = [device for device, can in zip(problem.devices, able_devices(problem), strict=True) if can]
        measured = {device.name: costs.prefill_s(device)[1] and costs.decode_s(device)[1] for device in able}
        rounds = _rounds(problem, costs, chain, result.solution)
        ttft_s = float(sum(bar.seconds for bar in rounds[0]))
        transfers = transfers_of(problem, chain, result.solution, _wake_s(problem))
        output_s = sum(t.seconds for t in transfers if t.purpose == "output")
        return chain_plan(
            problem,
            self.name,
            chain,
            result,
            costs.names,
            [None],
            metrics=_token_metrics(costs, result.metrics["latency_s"], ttft_s, output_s),
            bars=[bar for bars in rounds for bar in bars],
            notes=basis_notes(measured, [device.name for device in able if costs.is_between_batches(device)]),
            wake_s=_wake_s(problem),
        )


def _costs(problem: Problem) -> LanguageCosts:
    assert isinstance(problem.model, CausalLM)
    assert isinstance(problem.workload, TextWorkload)
    return LanguageCosts(problem.model, problem.workload)


def _wake_s(problem: Problem) -> np.ndarray:
    """Seconds that a device takes longer in a round that it waits for, (D,); nobody waits in a full pipeline."""
    if problem.objective == "throughput":
        return np.zeros(len(problem.devices))
    costs = _costs(problem)
    return np.array([costs.wake_s(device) for device in problem.devices])


def _request_s(costs: LanguageCosts, device: Device) -> np.ndarray:
    """Seconds per element of a whole request: the prefill and all decode rounds."""
    return costs.prefill_s(device)[0] + costs.decode_s(device)[0].sum(axis=0)


def _rounds(problem: Problem, costs: LanguageCosts, chain: Chain, solution: Solution) -> list[list[Bar]]:
    """Bars of the prefill and of the first decode round (if any), each with the transfers inside it."""
    rate = {(t.purpose, t.cut): t.rate_bytes_per_s for t in transfers_of(problem, chain, solution)}
    names = [device.name for device in problem.devices]
    wake_s = _wake_s(problem)
    segments = list(zip(solution.devices, solution.starts, solution.cuts, strict=True))

    def hop(label: str, cut: int, i: int, j: int, payload: float) -> list[Bar]:
        if i == j:
            return []
        seconds = float(chain.latency_s[i, j] - wake_s[j]) + (payload / rate[label, cut] if payload else 0.0)
        return [Bar(link_lane(names[i], names[j]), label, seconds)]

    def compute(
        table: dict[int, np.ndarray], label: str, payload: Callable[[int], float], before: int | None
    ) -> list[Bar]:
        bars = []
        for k, (d, start, stop) in enumerate(segments):
            if k:
                bars += hop("cut", start, segments[k - 1][0], d, payload(start))
            waited = d != (segments[k - 1][0] if k else before)
            seconds = table[d][start:stop].sum() + waited * wake_s[d]
            bars.append(Bar(names[d], f"{label} {costs.names[start]} … {costs.names[stop - 1]}", seconds))
        return bars

    first, last = solution.devices[0], solution.devices[-1]
    prompt = [] if chain.source is None else hop("input", 0, chain.source, first, costs.prefill_cut_bytes(0))
    prefill = {d: costs.prefill_s(problem.devices[d])[0] for d in solution.devices}
    rounds = [
        prompt + compute(prefill, "prefill", costs.prefill_cut_bytes, first if chain.source is None else chain.source)
    ]
    if costs.num_decode_rounds:
        decode = {d: costs.decode_s(problem.devices[d])[0][0] for d in solution.devices}
        loop = hop("loop", solution.cuts[-1], last, first, costs.loop_bytes / costs.num_decode_rounds)
        rounds.append(
            loop
            + compute(decode, "decode", lambda cut: costs.prefill_cut_bytes(cut) / costs.workload.prompt_tokens, last)
        )
    return rounds


def _token_metrics(costs: LanguageCosts, latency_s: float, ttft_s: float, output_s: float) -> dict[str, float]:
    """TTFT: until the first token is sampled. TPOT: the rest of the latency, without the result, per later token."""
    metrics = {"ttft_s": ttft_s, "tokens_per_s": costs.workload.batch * costs.workload.new_tokens / latency_s}
    if costs.num_decode_rounds:
        metrics["tpot_s"] = (latency_s - ttft_s - output_s) / costs.num_decode_rounds
    return metrics


def basis_notes(measured: dict[str, bool], between: Sequence[str] = ()) -> list[str]:
    """Say which devices' compute seconds are measured and which come from the roofline.

    ``between`` are those whose tables hold other batches than the one that is asked for.
    """
    groups = {True: "measured tables", False: "roofline (datasheet peaks and efficiency factors)"}
    notes = [
        f"compute from {basis}: {', '.join(names)}"
        for known, basis in groups.items()
        if (names := [name for name, value in measured.items() if value is known])
    ]
    if guessed := [name for name in between if measured.get(name)]:
        why = "where libraries may switch kernels; measure this batch to be sure"
        notes.append(f"compute interpolated between measured batches, {why}: {', '.join(guessed)}")
    return notes
