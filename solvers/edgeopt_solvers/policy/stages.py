"""Speculative decoding with a target in stages, exactly: one chain for each draft, draft device and length.

With these three fixed, and K rounds of average yield, a request takes

    max(F, R) + K (draft_round_s + γ draft_s + max(P, S) + reply) + output

F until the first token is with the draft, P from a draft until it is verified: sums over stages and what crosses the
cuts between them. R is when the draft has read the prompt, S how long its distributions take straight to the last
stage. Where F and P are the larger ones, as nearly always, the best pipeline is that of a chain whose elements take F
and K P together. In general max(x, y) >= w x + (1 - w) y for any w from 0 to 1, and S depends on the last device alone,
so every pair of weights has a chain whose optimum is a bound; a few pairs are tried where the first leaves a gap.

Candidates are taken by rising bound, from shortest paths that may return to a device and know no memory, until that is
no smaller than the best request at hand; a chain is asked only for what is better than it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from edgeopt_solvers.chain import Chain, Solution
from edgeopt_solvers.chain.arrays import Array
from edgeopt_solvers.chain.exact import solve as solve_chain
from edgeopt_solvers.policy.staged import StagedSolution, StagedSpeculative
from edgeopt_solvers.policy.staged_check import evaluate_staged
from edgeopt_solvers.result import Result, Status, relative_gap
from edgeopt_solvers.solve import Options

__all__ = ["Candidate", "chain_of", "solve_staged"]

#: Relative gap up to which a result is called optimal: rounding of sums.
PROVEN = 1e-9

#: Weights of reading the prompt and of the way through the stages, each against what goes on beside it.
WEIGHTS = ((1.0, 1.0), (0.0, 1.0), (1.0, 0.0), (0.5, 1.0), (1.0, 0.5), (0.5, 0.5), (0.0, 0.0))


@dataclass(frozen=True, slots=True)
class Candidate:
    """All but the pipeline: draft and device (-1 without), length, and a lower bound."""

    draft: int
    device: int
    length: int
    bound: float = -math.inf


@dataclass(slots=True)
class _Best:
    value: float = math.inf
    solution: StagedSolution | None = None

    def take(self, instance: StagedSpeculative, solution: StagedSolution) -> None:
        """Keep a solution if it is better."""
        found = evaluate_staged(instance, solution)
        if not found.violations and found.objective < self.value:
            self.value, self.solution = found.objective, solution


def solve_staged(instance: StagedSpeculative, options: Options) -> Result:
    """Solve the chains of all candidates that may be better than the best one at hand."""
    stop_at = math.inf if options.time_limit_s is None else time.perf_counter() + options.time_limit_s
    best = _Best()
    if isinstance(options.warm_start, StagedSolution):
        best.take(instance, options.warm_start)
    candidates = sorted(_candidates(instance), key=lambda candidate: candidate.bound)
    bound, num_chains, finished = math.inf, 0, True
    tolerance = max(options.gap, PROVEN / 2)
    for candidate in candidates:
        if candidate.bound >= best.value * (1 - tolerance):
            bound = min(bound, candidate.bound)
            break
        left_s = stop_at - time.perf_counter()
        if left_s <= 0:
            bound, finished = min(bound, candidate.bound), False
            break
        found, asked = _close(instance, candidate, best, stop_at, options)
        bound, num_chains = min(bound, max(found, candidate.bound)), num_chains + asked
        finished &= time.perf_counter() < stop_at
    bound = min(bound, best.value)
    statistics = {"num_candidates": float(len(candidates)), "num_chains": float(num_chains)}
    if best.solution is None:
        proven = finished and math.isinf(bound)
        status = Status("infeasible" if proven else "time_limit", False)
        return Result(status, math.inf, bound, None, "exact", 0.0, statistics=statistics)
    gap = relative_gap(best.value, bound)
    status = Status("optimal" if gap <= PROVEN else "gap_reached" if finished else "time_limit", True)
    message = ""
    if status.reason == "gap_reached" and gap > options.gap:
        message = "what a draft does beside the target is as long as it for some pipelines and not for others"
    return Result(status, best.value, bound, best.solution, "exact", 0.0, message=message, statistics=statistics)


def _close(
    instance: StagedSpeculative, candidate: Candidate, best: _Best, stop_at: float, options: Options
) -> tuple[float, int]:
    """Return a bound on a candidate's requests, once nothing better is left or the weights are through."""
    bound = -math.inf
    weights = WEIGHTS if candidate.length else WEIGHTS[:1]
    for asked, pair in enumerate(weights, 1):
        left_s = None if math.isinf(stop_at) else max(stop_at - time.perf_counter(), 1e-3)
        made = chain_of(instance, candidate, *pair)
        if made is None:
            return math.inf, asked - 1
        chain, constant = made
        cutoff = best.value - constant
        if cutoff <= 0:  # chains cost nothing at least
            return max(bound, constant), asked - 1
        found = solve_chain(chain, Options(left_s, options.gap, seed=options.seed, cutoff=cutoff))
        if found.solution is None and found.status.reason == "infeasible":
            return max(bound, best.value), asked
        bound = max(bound, found.bound + constant)
        if isinstance(found.solution, Solution):
            best.take(instance, _with_stages(candidate, found.solution))
        closed = bound >= best.value * (1 - max(options.gap, PROVEN / 2))
        if closed or time.perf_counter() >= stop_at:
            break
    return bound, asked


def _with_stages(candidate: Candidate, solution: Solution) -> StagedSolution:
    return StagedSolution(candidate.draft, candidate.device, candidate.length, solution.cuts, solution.devices)


def chain_of(
    instance: StagedSpeculative, candidate: Candidate, reading: float = 1.0, way: float = 1.0
) -> tuple[Chain, float] | None:
    """Return the chain of a candidate's pipelines, and the seconds that they all take beside it.

    What the ends of the pipeline send to the draft and the source is added to the computing of the first and the last
    element, which are always theirs.

    Parameters
    ----------
    reading, way
        Weights, see :data:`WEIGHTS`.

    Returns
    -------
    Chain and float, or None
        ``None``: the draft fits nowhere near.
    """
    ends = _ends(instance, candidate, reading, way)
    rounds, memory = _rounds(instance, candidate), instance.memory_bytes
    if candidate.length:
        memory = memory.copy()
        memory[candidate.device] -= float(instance.draft_bytes[candidate.draft])
        if memory[candidate.device] < 0 or math.isinf(ends.constant):
            return None
    seconds = _weighed(reading, instance.prefill_s) + _weighed(way * rounds, instance.verify_s[:, candidate.length])
    seconds[:, 0] += ends.first
    seconds[:, -1] += ends.last
    alone = candidate.length == 0
    chain = Chain(
        compute_s=seconds,
        cut_bytes=reading * instance.prefill_cut_bytes + way * rounds * _cut_bytes(instance, candidate.length),
        cut_messages=np.full(instance.num_elements + 1, reading + way * rounds),
        rate_bytes_per_s=instance.rate_bytes_per_s,
        latency_s=instance.latency_s,
        memory_bytes=memory,
        resident_bytes=instance.resident_bytes,
        transient_bytes=instance.transient_bytes,
        source=None,
        loop_bytes=rounds * instance.loop_bytes if alone else 0.0,
        loop_messages=rounds if alone else 0.0,
        max_stages=instance.max_stages,
        max_latency_s=None if instance.max_time_s is None else max(instance.max_time_s - ends.constant, 0.0),
    )
    return chain, ends.constant


@dataclass(frozen=True, slots=True)
class _Ends:
    """Seconds by device of the first and of the last stage, (D,) each, and those of all pipelines."""

    first: Array
    last: Array
    constant: float


def _ends(instance: StagedSpeculative, candidate: Candidate, reading: float, way: float) -> _Ends:
    D, d, rounds = instance.num_devices, candidate.device, _rounds(instance, candidate)
    source, devices = instance.source, range(D)
    prompt = np.array([instance.sending_s(source, e, instance.prompt_bytes) for e in devices])
    output = np.array([instance.sending_s(e, source, instance.result_bytes) for e in devices])
    if candidate.length == 0:
        return _Ends(prompt, output, 0.0)
    riding = instance.round_bytes + candidate.length * instance.token_bytes
    spread = candidate.length * instance.spread_bytes
    up = np.array([instance.sending_s(d, e, riding) for e in devices])
    reply = np.array([instance.sending_s(e, d, instance.reply_bytes) for e in devices])
    straight = np.array([instance.sending_s(d, e, riding + spread) if spread else 0.0 for e in devices])
    read_s = float(instance.draft_prefill_s[candidate.draft, d])
    after = np.where(np.arange(D) == d, read_s, 0.0)  # the last stage's device reads for the draft when it is done
    first = _weighed(reading, prompt) + _weighed(way * rounds, up)
    last = output + _weighed(reading, reply + after) + rounds * (reply + _weighed(1 - way, straight))
    at = candidate.draft, d
    steps = rounds * (candidate.length * float(instance.draft_s[at]) + float(instance.draft_round_s[at]))
    # One that holds a stage has the prompt from there, which may be sooner than straight from the source.
    arrives = float(prompt.min() if np.isfinite(instance.prefill_s[d]).any() else prompt[d])
    return _Ends(first, last, steps + float(_weighed(1 - reading, np.array(arrives + read_s))))


def _weighed(weight: float, seconds: Array) -> Array:
    """Multiply, but let what is impossible be so at any weight."""
    with np.errstate(invalid="ignore"):
        return np.where(np.isinf(seconds), math.inf, weight * seconds)


def _rounds(instance: StagedSpeculative, candidate: Candidate) -> float:
    return instance.rounds(candidate.draft, candidate.length) if candidate.length else instance.num_tokens


def _cut_bytes(instance: StagedSpeculative, length: int) -> Array:
    """Bytes that cross a cut in one round."""
    riding = instance.round_bytes + length * instance.token_bytes if length else 0.0
    found: Array = (length + 1) * instance.position_cut_bytes + riding
    return found


def _candidates(instance: StagedSpeculative) -> Iterator[Candidate]:
    """Yield every draft, device and length with the bound of its shortest path; impossible ones are left out."""
    fits = instance.draft_bytes[:, None] <= instance.memory_bytes * (1 + PROVEN)  # (A, D)
    able = fits & np.isfinite(instance.draft_s) & np.isfinite(instance.draft_prefill_s)
    for length in range(instance.min_length, instance.max_length + 1):
        for a in range(instance.num_drafts) if length else (-1,):
            between = _shortest_s(instance, Candidate(a, -1, length))
            for d in np.flatnonzero(able[a]).tolist() if length else (-1,):
                ends = _ends(instance, Candidate(a, d, length), 1.0, 1.0)
                bound = float((ends.first[:, None] + between + ends.last).min()) + ends.constant
                if math.isfinite(bound):
                    yield Candidate(a, d, length, bound)


def _shortest_s(instance: StagedSpeculative, candidate: Candidate) -> Array:
    """Least seconds from each first to each last device if stages may return and no memory is limited, (D, D)."""
    rounds, length = _rounds(instance, candidate), candidate.length
    seconds = instance.prefill_s + rounds * instance.verify_s[:, length]  # (D, L)
    hop_bytes = instance.prefill_cut_bytes + rounds * _cut_bytes(instance, length)
    reached = np.full((instance.num_devices,) * 2, math.inf)
    np.fill_diagonal(reached, seconds[:, 0])
    for element in range(1, instance.num_elements):
        hops = _hops_s(instance, float(hop_bytes[element]), 1.0 + rounds)
        reached = (reached[:, :, None] + hops).min(axis=1) + seconds[:, element]
    loop = _hops_s(instance, rounds * instance.loop_bytes, rounds).T if length == 0 else 0.0
    return np.asarray(reached + loop)


def _hops_s(instance: StagedSpeculative, num_bytes: float, messages: float) -> Array:
    """Seconds from every device to every other, (D, D)."""
    rate = instance.rate_bytes_per_s
    moving = np.divide(num_bytes, rate, out=np.full_like(rate, math.inf), where=rate > 0)
    seconds: Array = messages * instance.latency_s + moving
    np.fill_diagonal(seconds, 0.0)
    return seconds
