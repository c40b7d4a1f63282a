"""Targets in stages drawn by hypothesis, and the best of small ones found by trying all."""

from __future__ import annotations

import itertools
import math

import numpy as np
from hypothesis import strategies as st

from edgeopt_solvers.policy import StagedSolution, StagedSpeculative, evaluate


@st.composite
def stagings(draw, most_devices=3):
    """Draw an instance in which anything may be the longest: prefills, guesses, distributions, links."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    A, D, L, G = (draw(st.integers(1, n)) for n in (2, most_devices, 4, 3))
    used = draw(st.sets(st.sampled_from(
        ["links", "broken", "memory", "tight", "spread", "reading", "min_length", "max_stages", "time",
         "rounds"]
    )))  # fmt: skip

    def numbers(centre, size):
        return centre * rng.lognormal(0, 0.7, size)

    each = numbers(1.0, (D, 1, L))
    fields = {
        "draft_s": numbers(0.3, (A, D)), "draft_prefill_s": numbers(1.0 if "reading" not in used else 12.0, (A, D)),
        "prefill_s": numbers(2.0, (D, L)), "verify_s": each * (1 + 0.2 * np.arange(G + 1)[:, None]),
        "acceptance": rng.uniform(0.3, 1.0, (A, G)), "max_length": G, "num_tokens": 9.0,
        "source": int(rng.integers(D)), "prompt_bytes": 3.0, "result_bytes": 3.0,
        "prefill_cut_bytes": numbers(4.0, L + 1), "position_cut_bytes": numbers(1.0, L + 1), "round_bytes": 0.2,
        "token_bytes": 0.1, "reply_bytes": 0.2, "loop_bytes": 0.1,
    }  # fmt: skip
    if "links" in used:
        rate = np.where(rng.random((D, D)) < 0.15, 0.0, numbers(3.0, (D, D)))
        fields |= {"rate_bytes_per_s": rate, "latency_s": numbers(0.1, (D, D))}
    if "rounds" in used:
        fields["draft_round_s"] = numbers(0.5, (A, D))
    if "spread" in used:
        fields["spread_bytes"] = float(numbers(3.0, 1)[0])
    if "broken" in used:
        fields["draft_s"] = np.where(rng.random((A, D)) < 0.3, math.inf, fields["draft_s"])
        fields["verify_s"] = np.where(rng.random((D, 1, 1)) < 0.3, math.inf, fields["verify_s"])
    if "memory" in used or "tight" in used:
        size = L / D if "tight" in used else L
        fields |= {"memory_bytes": numbers(size, D) + 1.0, "draft_bytes": numbers(0.5, A)}
        fields |= {"resident_bytes": numbers(0.8, L), "transient_bytes": numbers(0.2, L)}
    if "min_length" in used:
        fields["min_length"] = int(rng.integers(0, G + 1))
    if "max_stages" in used:
        fields["max_stages"] = int(rng.integers(1, D + 1))
    if "time" in used:
        fields["max_time_s"] = float(numbers(30.0, 1)[0])
    return StagedSpeculative(**fields)


def pipelines(num_elements, num_devices):
    """Yield every way to cut, with other devices for all stages."""
    for count in range(1, min(num_elements, num_devices) + 1):
        for inner in itertools.combinations(range(1, num_elements), count - 1):
            for devices in itertools.permutations(range(num_devices), count):
                yield (*inner, num_elements), devices


def brute_force_staged(instance):
    """Return the least seconds over all drafts, devices, lengths, cuts; ``inf`` if none is allowed."""
    ways = list(pipelines(instance.num_elements, instance.num_devices))
    drafts = list(itertools.product(range(instance.num_drafts), range(instance.num_devices)))
    lengths = range(1, instance.max_length + 1)
    found = [evaluate(instance, StagedSolution(-1, -1, 0, *way)) for way in ways]
    found += [evaluate(instance, StagedSolution(*pair, length, *way))
              for way, pair, length in itertools.product(ways, drafts, lengths)]  # fmt: skip
    return min((each.objective for each in found if not each.violations), default=math.inf)
