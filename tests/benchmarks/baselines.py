"""What other tools would do with the same chain, re-stated from their published descriptions.

Every function takes a :class:`Chain` and returns a ``Solution``, or ``None`` where the tool would not fit the model.
They decide with the figures their tool looks at and nothing else; ``evaluate`` then judges them with all of them.

=====================  ==========================================================================================
memory_proportional    exo: a ring in order of memory, layers in proportion to memory
greedy_bytes           accelerate ``infer_auto_device_map``: fill devices in order until their memory is full
equal_split            transformers pipeline plan: the same number of layers on every device
pipedream              PipeDream's planner: balanced contiguous stages, all devices taken for equally fast
halda                  distilp/prima.cpp: every device at least one layer, one cost per layer and device, one scalar
                       for communication
random_best            the best of 200 random splits that fit
=====================  ==========================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from edgeopt_solvers.chain import Chain, Solution, evaluate

__all__ = ["BASELINES"]


def _segments(counts: Sequence[int], devices: Sequence[int]) -> Solution:
    """Build a solution from layers per device, leaving out devices with none."""
    used = [(int(d), int(n)) for d, n in zip(devices, counts, strict=True) if n > 0]
    return Solution(tuple(np.cumsum([n for _, n in used])), tuple(d for d, _ in used), (0,) * len(used))


def _apportion(weights: np.ndarray, total: int) -> np.ndarray:
    """Integers in proportion to ``weights`` that sum to ``total`` (largest remainders)."""
    ideal = weights / weights.sum() * total
    counts = np.floor(ideal).astype(int)
    for i in np.argsort(counts - ideal)[: total - counts.sum()]:
        counts[i] += 1
    return counts


def memory_proportional(chain: Chain) -> Solution | None:
    """Share layers in proportion to memory, devices in order of memory."""
    memory = np.asarray(chain.memory_bytes)
    if np.isinf(memory).any():
        memory = np.ones(chain.num_devices)
    order = np.argsort(-memory, kind="stable")
    return _segments(_apportion(memory[order], chain.num_elements), order)


def greedy_bytes(chain: Chain) -> Solution | None:
    """Fill devices in the given order until their memory is full."""
    counts, element = [0] * chain.num_devices, 0
    for d in range(chain.num_devices):
        left = float(chain.memory_bytes[d]) - float(chain.shared_bytes[0])
        while element < chain.num_elements and chain.resident_bytes[0, element] <= left:
            left -= chain.resident_bytes[0, element]
            counts[d] += 1
            element += 1
    return _segments(counts, range(chain.num_devices)) if element == chain.num_elements else None


def equal_split(chain: Chain) -> Solution | None:
    """Give every device the same number of layers, in the given order."""
    return _segments(_apportion(np.ones(chain.num_devices), chain.num_elements), range(chain.num_devices))


def pipedream(chain: Chain) -> Solution | None:
    """Minimise the largest stage as if every device were the mean device; any number of stages."""
    compute = np.asarray(chain.compute_s)[:, 0]
    mean = np.concatenate([[0.0], np.cumsum(np.where(np.isfinite(compute), compute, np.nan).mean(axis=0))])
    count, length = chain.num_devices, chain.num_elements
    best = np.full((count + 1, length + 1), np.inf)
    best[0, 0] = 0.0
    before = np.zeros((count + 1, length + 1), int)
    for k in range(1, count + 1):
        for stop in range(1, length + 1):
            loads = np.maximum(best[k - 1, :stop], mean[stop] - mean[:stop])
            before[k, stop] = int(np.argmin(loads))
            best[k, stop] = loads[before[k, stop]]
    k = int(np.nanargmin(best[:, length]))
    cuts = [length]
    while k > 1:
        cuts.append(int(before[k, cuts[-1]]))
        k -= 1
    ends = cuts[::-1]
    return Solution(tuple(ends), tuple(range(len(ends))), (0,) * len(ends))


def halda(chain: Chain) -> Solution | None:
    """One layer for every device, the rest to the fastest that still has memory, by one figure per device."""
    layer_s = np.median(np.asarray(chain.compute_s)[:, 0], axis=1)
    resident = np.asarray(chain.resident_bytes)[0]
    layer_bytes = float(np.median(resident))
    memory = np.array(chain.memory_bytes, float) - np.max(np.asarray(chain.transient_bytes)[0])
    # Beside layers the first device holds the embedding and the last one the head, which are larger.
    memory[0] -= max(0.0, resident[0] - layer_bytes)
    memory[-1] -= max(0.0, resident[-1] - layer_bytes)
    room = np.maximum(memory, 0.0) / layer_bytes if layer_bytes else np.full(chain.num_devices, np.inf)
    most = np.minimum(np.floor(room), chain.num_elements).astype(int)
    counts = np.minimum(1, most)
    left = chain.num_elements - counts.sum()
    if left < 0 or not np.isfinite(layer_s).all():
        return None
    for d in np.argsort(layer_s, kind="stable"):
        extra = min(left, most[d] - counts[d])
        counts[d] += extra
        left -= extra
    return _segments(counts, range(chain.num_devices)) if left == 0 else None


def random_best(chain: Chain, num_tries: int = 200, seed: int = 0) -> Solution | None:
    """Return the best feasible one of ``num_tries`` random device orders and cuts."""
    rng = np.random.default_rng(seed)
    best, best_value = None, np.inf
    for _ in range(num_tries):
        stages = int(rng.integers(1, min(chain.num_devices, chain.num_elements) + 1))
        cuts = np.sort(rng.choice(np.arange(1, chain.num_elements), stages - 1, replace=False))
        devices = rng.choice(chain.num_devices, stages, replace=False)
        solution = Solution((*cuts, chain.num_elements), tuple(devices), (0,) * stages)
        outcome = evaluate(chain, solution)
        if not outcome.violations and outcome.objective < best_value:
            best, best_value = solution, outcome.objective
    return best


BASELINES: dict[str, Callable[[Chain], Solution | None]] = {
    "memory_proportional": memory_proportional,
    "greedy_bytes": greedy_bytes,
    "equal_split": equal_split,
    "pipedream": pipedream,
    "halda": halda,
    "random_best": random_best,
}
