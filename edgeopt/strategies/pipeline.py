"""Layer split of a language model: contiguous blocks on devices, hidden states travel, sampled tokens return.

Chain elements are the embedding, the blocks and the head; compute is one prefill plus the decode rounds; each
inner cut carries one message a round; every sampled token returns from the last stage to the first (the loop).
Chain variants are the formats that a stage's weights are stored in, where the problem says what a loss may be.

A prompt in C chunks overlaps on the stages: with chunks equally long, stage k computes u_k for each and the k-th cut
carries x_k seconds of bytes for each, all of it takes (the flow shop of equal jobs)

    TTFT = one chunk through all stages + (C - 1) max(u_1 …, x_1 …)

which is no sum over elements. The chain that is solved has the mean of u over at most m stages in place of the maximum,
so its optimum is a lower bound; :meth:`Pipeline.settle` solves the formula itself, exactly for few devices
(:mod:`edgeopt_solvers.chain.overlapped`), and else takes the best of several chains' plans.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np

from edgeopt.costs.language import LanguageCosts, weight_formats
from edgeopt.plan import Plan
from edgeopt.profiles.device import Device
from edgeopt.profiles.model import CausalLM, WeightQuality
from edgeopt.profiles.problem import Problem, TextWorkload
from edgeopt.strategies.base import Strategy
from edgeopt.strategies.chain import able_devices, chain_plan, compute_table, shared_arguments, transfers_of
from edgeopt.strategies.timeline import Bar, link_lane
from edgeopt_solvers import Result, Status, solve
from edgeopt_solvers.chain import Chain, Solution, evaluate
from edgeopt_solvers.chain.overlapped import Overlapped, least_overlapped
from edgeopt_solvers.result import relative_gap

__all__ = ["Pipeline", "basis_notes"]

#: Numbers of chunks that `auto` tries, and the fewest tokens in one.
_CHUNKS, _LEAST_TOKENS = (2, 3, 4, 8, 16), 16


class Pipeline(Strategy):
    """Plan a language model's layers over devices."""

    name: ClassVar[str] = "pipeline"

    def unfit(self, problem: Problem) -> str | None:
        """Refuse what is not a language model with a text workload, and limits that its objective cannot keep."""
        if not isinstance(problem.model, CausalLM) or not isinstance(problem.workload, TextWorkload):
            return f"pipeline splits language models; {problem.model.name!r} is a {problem.model.family} model"
        if problem.workload.requests_per_s is not None:
            return "pipeline queues nothing, and requests arrive by themselves (workload.requests_per_s)"
        if problem.constraints.accuracy is not None:
            return "pipeline counts no right answers, and constraints.accuracy asks for some"
        if problem.objective == "tpot" and problem.workload.new_tokens == 1:
            return "no token follows the first (workload.new_tokens is 1), so that objective tpot says nothing"
        limits, chunked = problem.constraints, problem.workload.prefill_chunk is not None
        if chunked and problem.objective not in ("latency", "ttft", "tpot", "throughput"):
            return "workload.prefill_chunk goes with objective latency, ttft, tpot or throughput"
        if problem.objective in ("ttft", "tpot") or (chunked and problem.objective == "latency"):
            named = {"deadline": limits.deadline, "period": limits.period, "energy": limits.energy}
            broken = [f"constraints.{name}" for name, value in named.items() if value is not None]
            if broken:
                why = "workload.prefill_chunk" if problem.objective == "latency" else f"objective {problem.objective}"
                return f"pipeline keeps no {' or '.join(broken)} with {why}; drop one of them"
        return None

    def cases(self, problem: Problem) -> list[Problem]:
        """Return one problem for each number of chunks, where that is open."""
        load = problem.workload
        assert isinstance(load, TextWorkload)
        if load.prefill_chunk != "auto":
            return [problem]
        sizes = {-(-load.prompt_tokens // count) for count in _CHUNKS}
        chosen = [None, *sorted((size for size in sizes if size >= _LEAST_TOKENS), reverse=True)]
        loads = [load.model_copy(update={"prefill_chunk": size}) for size in chosen]
        return [problem.model_copy(update={"workload": each}) for each in loads]

    def build(self, problem: Problem) -> Chain:
        """Build the chain of layers; ``reuse`` is ``once``, since a layer's cache lives where the layer lives."""
        if problem.objective in ("ttft", "tpot"):
            return _phase(problem, _shared_weight(problem))
        return _overlapped(problem, _shared_weight(problem)) if self.settles(problem) else _whole(problem)

    def settles(self, problem: Problem) -> bool:
        """Chunks that overlap take less than any chain says."""
        return problem.objective in ("latency", "ttft") and len(_costs(problem).workload.chunks) > 1

    def settle(self, problem: Problem, instance: Chain, result: Result) -> Result:
        """Take the best plan of several chains, where the one that was solved only bounds what a plan takes."""
        if not self.settles(problem):
            return result
        make = _phase if problem.objective == "ttft" else _overlapped
        overlapped = _turns(problem, make(problem, 0.0))
        if overlapped.is_supported:
            solution, value, bound = least_overlapped(overlapped, time_limit_s=10.0)
            assert solution is not None, "the chain has a plan"
            status = Status("optimal" if bound >= value else "time_limit", True)
            return replace(result, solution=solution, objective=value, bound=bound, status=status)
        # The larger the weight, the more do plans avoid a slow stage; one stage alone counts in full at weight 1.
        others = (solve(make(problem, weight), diagnose=False, time_limit_s=5.0) for weight in (0.75, 1.5))
        found = [result.solution, *(other.solution for other in others if other.solution is not None)]
        best = min(found, key=lambda solution: _goal_s(problem, solution))
        value = _goal_s(problem, best)
        gap = relative_gap(value, result.bound)
        reason = "gap_reached" if gap > 1e-9 and result.status.reason == "optimal" else result.status.reason
        return replace(result, solution=best, objective=value, status=Status(reason, True))

    def plan(self, problem: Problem, chain: Chain, result: Result) -> Plan:
        """Add TTFT, TPOT and tokens per second; the timeline shows the first two rounds."""
        costs, solution = _costs(problem), result.solution
        able = [device for device, can in zip(problem.devices, able_devices(problem), strict=True) if can]
        measured = {device.name: costs.prefill_s(device)[1] and costs.decode_s(device)[1] for device in able}
        whole = _whole(problem)
        latency_s, bars = _timing(problem, whole, solution)
        ttft_s = float(sum(bar.seconds for bar in bars[0]))
        output_s = sum(t.seconds for t in transfers_of(problem, whole, solution) if t.purpose == "output")
        if self.settles(problem):
            value = latency_s if problem.objective == "latency" else ttft_s
            bound = result.bound + value - result.objective
            result = replace(result, objective=value, bound=bound)
        metrics = evaluate(whole, solution).metrics | {"latency_s": latency_s}
        return chain_plan(
            problem,
            self.name,
            whole,
            replace(result, metrics=metrics),
            costs.names,
            [None, *weight_formats(problem)],
            quality_base=0.0 if weight_formats(problem) else None,
            metrics=_token_metrics(costs, latency_s, ttft_s, output_s),
            bars=[bar for each in bars for bar in each],
            notes=[
                *basis_notes(measured, [device.name for device in able if costs.is_between_batches(device)]),
                *_chunk_notes(costs),
            ],
            wake_s=_wake_s(problem),
        )


def _costs(problem: Problem) -> LanguageCosts:
    assert isinstance(problem.model, CausalLM)
    assert isinstance(problem.workload, TextWorkload)
    return LanguageCosts(problem.model, problem.workload)


def _formats(problem: Problem) -> list[LanguageCosts]:
    """Costs by variant of the chain: the model's own dtype first, then every format that weights may be stored in."""
    costs = _costs(problem)
    return [costs, *(replace(costs, weights=name) for name in weight_formats(problem))]


def _shared_weight(problem: Problem) -> float:
    """Return the largest weight of all stages that is sure to count no more than the longest of them does."""
    most = min(sum(able_devices(problem)), problem.constraints.max_stages or len(problem.devices))
    return 1.0 / max(most, 1)


def _whole(problem: Problem) -> Chain:
    """Everything that devices and links do for a request, one after the other."""
    costs = _costs(problem)
    return _chain(
        problem,
        lambda each, device: each.prefill_s(device)[0] + each.decode_s(device)[0].sum(axis=0),
        cut_bytes=costs.cut_bytes,
        cut_messages=costs.cut_messages,
        loop_bytes=costs.loop_bytes,
        loop_messages=float(costs.num_decode_rounds),
    )


def _overlapped(problem: Problem, weight: float) -> Chain:
    """One chunk through all stages, ``weight`` of the others' computing, all decode rounds."""
    costs, chunks = _costs(problem), len(_costs(problem).workload.chunks)
    share = (1.0 + (chunks - 1) * weight) / chunks
    hidden = [costs.prefill_cut_bytes(cut) for cut in range(1, len(costs.layers))]
    return _chain(
        problem,
        lambda each, device: share * each.prefill_s(device)[0] + each.decode_s(device)[0].sum(axis=0),
        cut_bytes=costs.cut_bytes - (1.0 - 1.0 / chunks) * np.array([0.0, *hidden, 0.0]),
        cut_messages=costs.cut_messages - np.array([0.0, *[chunks - 1.0] * len(hidden), 0.0]),
        loop_bytes=costs.loop_bytes,
        loop_messages=float(costs.num_decode_rounds),
    )


def _turns(problem: Problem, chain: Chain) -> Overlapped:
    """Everything of the first chunk, and what each further one makes stages and links busy for."""
    costs, count = _costs(problem), len(problem.devices)
    chunks = len(costs.workload.chunks)
    cuts = np.array([0.0, *(costs.prefill_cut_bytes(cut) for cut in range(1, len(costs.layers))), 0.0])
    with np.errstate(divide="ignore", invalid="ignore"):
        transfer_s = np.nan_to_num(cuts / chunks / chain.rate_bytes_per_s[:, :, None], nan=0.0, posinf=np.inf)
    transfer_s[range(count), range(count)] = 0.0
    seconds = compute_table(problem, lambda device: costs.prefill_s(device)[0] / chunks)
    return Overlapped(chain, seconds, transfer_s, chunks - 1.0)


def _phase(problem: Problem, weight: float) -> Chain:
    """Return what a request takes until its first token (objective ``ttft``), or for each later one (``tpot``)."""
    costs = _costs(problem)
    inner = range(1, len(costs.layers))
    messages = np.array([0.0, *[1.0] * len(inner), 0.0])
    if problem.objective == "tpot":
        return _chain(
            problem,
            lambda each, device: each.decode_s(device)[0].mean(axis=0),
            cut_bytes=np.array([0.0, *map(costs.decode_cut_bytes, inner), 0.0]),
            cut_messages=messages,
            loop_bytes=costs.loop_bytes / costs.num_decode_rounds,
            loop_messages=1.0,
        )
    chunks = len(costs.workload.chunks)
    share = (1.0 + (chunks - 1) * weight) / chunks
    messages[0] = 1.0
    return _chain(
        problem,
        lambda each, device: share * each.prefill_s(device)[0],
        cut_bytes=np.array(
            [costs.prefill_cut_bytes(0), *(costs.prefill_cut_bytes(cut) / chunks for cut in inner), 0.0]
        ),
        cut_messages=messages,
        loop_bytes=0.0,
        loop_messages=0.0,
    )


def _chain(problem: Problem, seconds: Callable[[LanguageCosts, Device], np.ndarray], **moved: Any) -> Chain:
    """Return the chain of what is computed and moved; memory is always that of the whole request."""
    formats, quality, limit = _formats(problem), problem.model.quality, problem.constraints.quality
    arguments = shared_arguments(problem, formats[0].names)
    # A device that waits for a message computes slower at first: the solver sees it as part of the way there.
    arguments["latency_s"] = arguments["latency_s"] + _wake_s(problem)
    if problem.objective in ("ttft", "tpot"):
        arguments["objective"] = "latency"
    if len(formats) > 1:
        assert isinstance(quality, WeightQuality)
        losses = [quality.loss[name] for name in quality.loss]
        arguments["quality_loss"] = np.array([[0.0] * len(losses[0]), *losses])
        arguments["max_quality_loss"] = None if limit is None else limit / (1.0 + (quality.margin or 0.0))
    return Chain(
        compute_s=compute_table(problem, lambda device: np.stack([seconds(each, device) for each in formats])),
        resident_bytes=np.stack([each.resident_bytes for each in formats]),
        transient_bytes=np.stack([each.transient_bytes for each in formats]),
        reuse="once",
        **moved,
        **arguments,
    )


def _wake_s(problem: Problem) -> np.ndarray:
    """Seconds that a device takes longer in a round that it waits for, (D,); nobody waits in a full pipeline."""
    if problem.objective == "throughput":
        return np.zeros(len(problem.devices))
    costs = _costs(problem)
    return np.array([costs.wake_s(device) for device in problem.devices])


def _goal_s(problem: Problem, solution: Solution) -> float:
    """Seconds of a request, or until its first token, whichever is the objective."""
    latency_s, bars = _timing(problem, _whole(problem), solution)
    return latency_s if problem.objective == "latency" else float(sum(bar.seconds for bar in bars[0]))


def _timing(problem: Problem, whole: Chain, solution: Solution) -> tuple[float, list[list[Bar]]]:
    """Latency of a request; bars of its prefill and of the first decode round (if any), with the transfers inside."""
    formats, names, wake_s = _formats(problem), [device.name for device in problem.devices], _wake_s(problem)
    costs = formats[0]
    chunks = len(costs.workload.chunks)
    rate = {(t.purpose, t.cut): t.rate_bytes_per_s for t in transfers_of(problem, whole, solution)}
    segments = list(zip(solution.devices, solution.variants, solution.starts, solution.cuts, strict=True))

    def hop(label: str, cut: int, i: int, j: int, payload: float) -> list[Bar]:
        if i == j:
            return []
        seconds = float(whole.latency_s[i, j] - wake_s[j]) + (payload / rate[label, cut] if payload else 0.0)
        return [Bar(link_lane(names[i], names[j]), label, seconds)]

    def compute(seconds: Sequence[float], label: str, payload: Callable[[int], float], before: int | None) -> list[Bar]:
        bars = []
        for k, (d, _, start, stop) in enumerate(segments):
            if k:
                bars += hop("cut", start, segments[k - 1][0], d, payload(start))
            waited = d != (segments[k - 1][0] if k else before)
            what = f"{label} {costs.names[start]} … {costs.names[stop - 1]}"
            bars.append(Bar(names[d], what, seconds[k] + waited * wake_s[d]))
        return bars

    first, last = solution.devices[0], solution.devices[-1]
    source = first if whole.source is None else whole.source
    prompt = hop("input", 0, source, first, costs.prefill_cut_bytes(0))
    chunk = [formats[v].prefill_s(problem.devices[d])[0][a:b].sum() / chunks for d, v, a, b in segments]
    label = "prefill" if chunks == 1 else f"prefill, chunk 1 of {chunks},"
    rounds = [prompt + compute(chunk, label, lambda cut: costs.prefill_cut_bytes(cut) / chunks, source)]
    latency_s = float(evaluate(whole, solution).metrics["latency_s"])
    if chunks > 1:
        # One after the other, every chunk would take as long as the first does from the first stage on.
        step_s = sum(bar.seconds for bar in rounds[0][len(prompt) :]) - (source != first) * wake_s[first]
        busy = [(seconds, names[d]) for seconds, (d, *_) in zip(chunk, segments, strict=True)]
        busy += [
            (costs.prefill_cut_bytes(b[2]) / chunks / rate["cut", b[2]], link_lane(names[a[0]], names[b[0]]))
            for a, b in pairwise(segments)
        ]
        slowest_s, lane = max(busy)
        rounds[0].append(Bar(lane, f"{chunks - 1} more chunks", (chunks - 1) * float(slowest_s)))
        latency_s -= (chunks - 1) * float(step_s - slowest_s)
    if costs.num_decode_rounds:
        decode = [formats[v].decode_s(problem.devices[d])[0][0][a:b].sum() for d, v, a, b in segments]
        loop = hop("loop", solution.cuts[-1], last, first, costs.loop_bytes / costs.num_decode_rounds)
        rounds.append(loop + compute(decode, "decode", costs.decode_cut_bytes, last))
    return latency_s, rounds


def _chunk_notes(costs: LanguageCosts) -> list[str]:
    chunks = costs.workload.chunks
    if len(chunks) == 1:
        return []
    return [f"prompt in {len(chunks)} chunks of {chunks[0]} tokens, which overlap; sums of stages and transfers do not"]


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
