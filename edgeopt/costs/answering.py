"""Costs of answering recorded queries: seconds by query and device, what waits in line, how sure an accuracy is.

An answer of T tokens to a query of P is a prefill, which yields the first token, and T - 1 decode rounds on P, P + 1, …
cached tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeopt.costs.language import LanguageCosts
from edgeopt.profiles.device import Device
from edgeopt.profiles.model import CausalLM
from edgeopt.profiles.problem import TextWorkload

__all__ = ["Interval", "Stream", "accuracy_interval", "accuracy_needed", "answer_s", "waiting_s"]

#: 97.5 % and 95 % points of the normal distribution: both ends of an interval, and one.
_BOTH_ENDS, _ONE_END = 1.959964, 1.644854

Array = NDArray[np.float64]
Ints = NDArray[np.int64]


def answer_s(
    model: CausalLM, workload: TextWorkload, device: Device, prompt_tokens: Ints, tokens: Ints
) -> tuple[Array, bool]:
    """Seconds that a device computes on each answer.

    Parameters
    ----------
    prompt_tokens, tokens : (N,)
        Of each query and its answer, at least 1.

    Returns
    -------
    (N,) seconds, and whether all of them rest on measurements.
    """
    seconds, known = np.zeros(len(tokens)), True
    for length in np.unique(prompt_tokens).tolist():
        costs = LanguageCosts(model, workload.model_copy(update={"prompt_tokens": length}))
        table, measured = costs.prefill_s(device)
        seconds[prompt_tokens == length] = float(table.sum())
        known = known and measured
    first, stop = int(prompt_tokens.min()), int((prompt_tokens + tokens).max())
    if (tokens > 1).any():
        load = workload.model_copy(update={"prompt_tokens": first, "new_tokens": stop - first})
        rounds, measured = LanguageCosts(model, load).decode_s(device)
        known = known and measured
        before = np.concatenate([[0.0], np.cumsum(rounds.sum(axis=1))])
        seconds += before[prompt_tokens + tokens - 1 - first] - before[prompt_tokens - first]
    return seconds, known


@dataclass(frozen=True, slots=True)
class Stream:
    """Queries that ask one model: on which device, after which stream (-1: on arrival), and its service times.

    ``share`` is the fraction of all queries, ``mean_s`` and ``square_s2`` are the first two moments of the seconds that
    the device computes on one.
    """

    device: int
    after: int
    share: float
    mean_s: float
    square_s2: float


def waiting_s(streams: Sequence[Stream], rate_per_s: float) -> dict[int, float]:
    """Mean seconds that a query waits for each device, which serves one at a time in the order of arrival.

    An M/G/1 queue (Pollaczek-Khinchine) where all queries come from outside, as a Poisson process. What is passed on
    from one device to the next is no Poisson process: its variability follows from that of the queue it leaves
    (queueing network analyzer, Whitt 1983, doi:10.1002/j.1538-7305.1983.tb03204.x, with superpositions averaged):

        W = ρ / (1 - ρ) · (c²_a + c²_s) / 2 · E[S],   c²_leaving = 1 + (1 - ρ²)(c²_a - 1) + ρ² (c²_s - 1),
        c²_passed on with probability p = 1 + p (c²_leaving - 1)

    Returns
    -------
    dict
        Device → seconds, ``inf`` where it is asked for all of its time or more.
    """
    devices = sorted({stream.device for stream in streams})
    arrivals = {d: _arriving(streams, d) for d in devices}
    load = {d: rate_per_s * sum(s.share * s.mean_s for s in arrivals[d].values()) for d in devices}
    if any(rho >= 1 for rho in load.values()):
        return {d: math.inf if load[d] >= 1 else 0.0 for d in devices}
    spread = {d: _spread_of_service(arrivals[d]) for d in devices}
    incoming = dict.fromkeys(range(len(streams)), 1.0)
    gathered = dict.fromkeys(devices, 1.0)
    for _ in range(50):  # a device that is asked twice hears from itself; the equations contract
        for d in devices:
            total = sum(s.share for s in arrivals[d].values())
            gathered[d] = sum(s.share * incoming[k] for k, s in arrivals[d].items()) / total if total else 1.0
        for k, stream in enumerate(streams):
            if stream.after >= 0:
                d = streams[stream.after].device
                leaving = 1 + (1 - load[d] ** 2) * (gathered[d] - 1) + load[d] ** 2 * (spread[d] - 1)
                total = sum(s.share for s in arrivals[d].values())
                incoming[k] = 1 + stream.share / total * (leaving - 1)
    found = {}
    for d in devices:
        total = sum(s.share for s in arrivals[d].values())
        mean_s = sum(s.share * s.mean_s for s in arrivals[d].values()) / total if total else 0.0
        found[d] = load[d] / (1 - load[d]) * (gathered[d] + spread[d]) / 2 * mean_s
    return found


def _arriving(streams: Sequence[Stream], device: int) -> Mapping[int, Stream]:
    return {k: stream for k, stream in enumerate(streams) if stream.device == device and stream.share > 0}


def _spread_of_service(streams: Mapping[int, Stream]) -> float:
    """Squared coefficient of variation of a device's service times, all streams together."""
    total = sum(s.share for s in streams.values())
    mean = sum(s.share * s.mean_s for s in streams.values())
    if not total or not mean:
        return 0.0
    return max(0.0, total * sum(s.share * s.square_s2 for s in streams.values()) / mean**2 - 1.0)


@dataclass(frozen=True, slots=True)
class Interval:
    """A predicted fraction and where 95 of 100 measurements of it are."""

    mean: float
    low: float
    high: float


def accuracy_interval(right: float, num_fit: int, num_held_out: int) -> Interval:
    """Predict the accuracy on other queries of the same kind.

    ``right`` of ``num_fit`` queries were answered right; both that and the measurement on ``num_held_out`` others vary,
    so that the difference has variance p (1 - p) (1 / num_fit + 1 / num_held_out). p is moved towards one half by two
    answers of each kind (Agresti and Coull 1998, doi:10.1080/00031305.1998.10480550), so that intervals at 0 and 1 have
    a width.
    """
    mean, moved = right / num_fit, (right + 2) / (num_fit + 4)
    half = _BOTH_ENDS * math.sqrt(moved * (1 - moved) * (1 / num_fit + 1 / num_held_out))
    return Interval(mean, max(0.0, mean - half), min(1.0, mean + half))


def accuracy_needed(floor: float, num_fit: int, num_held_out: int) -> float:
    """Accuracy on the fit queries that a floor asks for, so that other queries keep it in 95 of 100 cases.

    A cascade that is right with probability ``floor`` exactly shows this much or more on the fit queries, less what it
    shows on the others, in 5 of 100 cases.
    """
    return floor + _ONE_END * math.sqrt(floor * (1 - floor) * (1 / num_fit + 1 / num_held_out))
