"""Shared media: exact = brute force = reference formulations, the checker, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeopt_solvers import InstanceError, UnsupportedError, solve
from edgeopt_solvers.chain import CAPABILITIES, Chain, Solution, evaluate
from edgeopt_solvers.chain.shares import with_shares
from tests.solvers.chain.brute import brute_force
from tests.solvers.chain.brute_media import brute_force_with_media
from tests.solvers.chain.draws import chains


def several(examples: int):
    return settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@st.composite
def media_chains(draw, modes=("time_shared", "reserved"), radio=False, max_plans=2_000) -> Chain:
    """Draw a chain of ``draws.chains`` and put its links into one to three media."""
    chain = draw(chains(max_plans))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    D, num_media = chain.num_devices, int(rng.integers(1, 4))
    mode = rng.choice(modes, num_media).tolist()
    fields = {"media": mode, "medium": rng.integers(-1 if rng.random() < 0.5 else 0, num_media, (D, D))}
    if radio:
        fields["band_hz"] = rng.choice([8.0, 16.0, 0.0], num_media)
        fields["snr"] = rng.choice([0.25, 1.0, 3.0, 20.0] + [0.0] * int(rng.random() < 0.3), (D, D))
    chain = replace(chain, **fields)
    if "reserved_conflict" in chain.features():  # keep one thing that shares are to serve
        goal = str(rng.choice(["latency", "energy", "mix", "period", "deadline", "longest"]))
        if goal in ("energy", "mix") and chain.power_w is None:
            goal = "latency"
        objective = {"period": "throughput", "mix": {"latency": 2.0, "energy": 0.5}}.get(goal, goal)
        if goal in ("deadline", "longest"):
            objective = {"quality": 1.0}
        kept = {"latency": "max_latency_s", "deadline": "max_latency_s", "energy": "max_energy_j"}
        kept |= {"period": "max_period_s", "longest": "max_period_s"}
        limits = dict.fromkeys(name for name in set(kept.values()) if name != kept.get(goal))
        if goal == "period":
            limits["load_cost"] = None
        chain = replace(chain, objective=objective, quality_loss=chain.quality_loss, **limits)
    return chain


def agree(chain: Chain, best: float, backends=("exact", "pulp", "ortools"), rel: float = 1e-6) -> None:
    for backend in backends:
        if not chain.features() <= CAPABILITIES[backend]:
            continue
        result = solve(chain, backend)
        if math.isinf(best):
            assert result.status.reason == "infeasible", backend
            assert result.bound == math.inf
            continue
        tolerance = rel if backend == "pulp" else 1e-8
        assert result.objective == pytest.approx(best, rel=tolerance, abs=tolerance), backend
        assert result.status.reason == "optimal", backend
        assert result.bound <= best + tolerance * max(1.0, abs(best)), backend
        assert evaluate(chain, result.solution).violations == ()


@several(200)
@given(media_chains(modes=("time_shared",)))
def test_time_shared_media_add_up(chain):
    agree(chain, brute_force(chain))


@several(200)
@given(media_chains())
def test_reserved_media_are_divided_together_with_the_plan(chain):
    agree(chain, brute_force_with_media(chain))


@several(60)
@given(media_chains(modes=("time_shared",), radio=True))
def test_radio_links_that_are_time_shared_have_the_rate_of_the_whole_band(chain):
    full = np.append(chain.band_hz, 0.0)[chain.medium] * np.log2(1 + chain.snr) / 8
    plain = replace(chain, band_hz=None, snr=None)
    assert np.allclose(plain.rate_bytes_per_s[chain.is_radio], full[chain.is_radio], rtol=1e-12)
    agree(chain, brute_force(plain))


@several(100)
@given(media_chains(modes=("reserved", "reserved", "time_shared"), radio=True, max_plans=800))
def test_radio_bands_are_divided_together_with_the_plan(chain):
    agree(chain, brute_force_with_media(chain))


# ── the checker, data, and what is refused ───────────────────────────────────────────────────────────────────────

TWO_HOPS = {
    "compute_s": [[1.0, math.inf, math.inf], [math.inf, 1.0, math.inf], [math.inf, math.inf, 1.0]],
    "cut_bytes": [5.0, 8.0, 2.0, 0.0],
    "rate_bytes_per_s": np.full((3, 3), 2.0),
    "latency_s": np.full((3, 3), 0.5),
    "cut_messages": [1.0, 1.0, 1.0, 0.0],
    "medium": np.zeros((3, 3)),
    "source": None,
}
PLAN = Solution((1, 2, 3), (0, 1, 2), (0, 0, 0))


def test_a_hand_computed_plan_with_shares():
    chain = Chain(**TWO_HOPS, media=["reserved"])
    # 8 and 2 bytes at 2 bytes/s: sqrt(4) and sqrt(1), so two thirds and one third, (2 + 1)^2 = 9 s, and 2 messages
    best = with_shares(chain, PLAN)
    assert best.shares == pytest.approx((2 / 3, 1 / 3))
    evaluation = evaluate(chain, best)
    assert evaluation.terms["transfer_s"] == pytest.approx(9 + 2 * 0.5)
    assert evaluation.objective == pytest.approx(3 + 10)
    assert solve(chain).solution == best
    halves = evaluate(chain, replace(PLAN, shares=(0.5, 0.5)))
    assert halves.violations == ()
    assert halves.terms["transfer_s"] == pytest.approx(8 / 1 + 2 / 1 + 1)
    # with time sharing the same transfers take 4 + 1 seconds
    assert evaluate(replace(chain, media=["time_shared"]), PLAN).terms["transfer_s"] == pytest.approx(5 + 1)


def test_busy_times_of_media():
    timed = Chain(**TWO_HOPS, media=["time_shared"], objective="throughput")
    assert evaluate(timed, PLAN).metrics["period_s"] == 4.5 + 1.5  # the medium, not the busier link
    reserved = Chain(**TWO_HOPS, media=["reserved"], objective="throughput")
    best = with_shares(reserved, PLAN)
    # both are over after the same time: 4/b + 0.5 = 1/(1 - b) + 0.5
    assert best.shares == pytest.approx((0.8, 0.2))
    assert evaluate(reserved, best).metrics["period_s"] == pytest.approx(5.5)


@pytest.mark.parametrize(
    ("shares", "sentence"),
    [
        (None, "shares are missing"),
        ((1.0,), "1 shares for 2 transfers"),
        ((0.6, 0.5), "the shares of medium 0 add up to 1.1, above 1"),
        ((1.2, 0.1), "the share of cut 1 is 1.2, and must be within 0..1"),
        ((math.nan, 0.1), "the share of cut 1 is nan"),
        ((0.0, 1.0), "cut 1 holds no share of medium 0 and never arrives"),
    ],
)
def test_each_fault_of_shares_is_a_sentence(shares, sentence):
    violations = evaluate(Chain(**TWO_HOPS, media=["reserved"]), replace(PLAN, shares=shares)).violations
    assert any(sentence in violation for violation in violations), violations


def test_a_share_of_a_link_that_reserves_nothing_is_one():
    chain = Chain(**{**TWO_HOPS, "medium": [[-1, 0, -1], [-1, -1, -1], [-1, -1, -1]]}, media=["reserved"])
    assert with_shares(chain, PLAN).shares == (1.0, 1.0)
    violations = evaluate(chain, replace(PLAN, shares=(1.0, 0.5))).violations
    assert violations == ("the share of cut 2 is 0.5, and its link reserves nothing: give 1",)


@several(60)
@given(media_chains(modes=("reserved",), radio=True), st.integers(0, 2**32 - 1))
def test_no_other_shares_are_better(chain, seed):
    rng = np.random.default_rng(seed)
    device = np.sort(rng.integers(0, chain.num_devices, chain.num_elements))
    cuts = [k for k in range(1, chain.num_elements) if device[k] != device[k - 1]] + [chain.num_elements]
    best = with_shares(chain, Solution(tuple(cuts), tuple(device[k - 1] for k in cuts), (0,) * len(cuts)))
    if best.shares is None or not math.isfinite(evaluate(chain, best).objective):
        return
    for _ in range(5):
        moved = np.array(best.shares) * rng.uniform(0.7, 1.0, len(best.shares))
        other = evaluate(chain, replace(best, shares=tuple(np.where(np.array(best.shares) == 1, 1.0, moved))))
        least = evaluate(chain, best).objective  # of either sign: losses may be gains
        assert other.objective >= least - 1e-9 * abs(least) - 1e-12


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"media": ["fdma"]}, r"media\[0\] is 'fdma'; choose one of time_shared, reserved"),
        ({"media": "reserved"}, "media is 'reserved'; give a list"),
        ({"media": []}, r"medium\[0, 1\] is 0; give the medium of each link"),
        ({"media": ["reserved"], "medium": np.full((3, 3), 0.5)}, r"medium\[0, 1\] is 0.5"),
        ({"media": ["reserved"], "band_hz": [1.0, 2.0]}, r"band_hz has shape \(2,\), expected \(1,\)"),
        ({"media": ["reserved"], "band_hz": [1.0]}, "snr is missing"),
        ({"media": ["reserved"], "band_hz": [1.0], "snr": -np.ones((3, 3))}, r"snr\[0, 1\] is -1.0"),
        ({"media": [], "medium": None, "band_hz": [1.0]}, "band_hz is given, and media is empty"),
    ],
)
def test_media_that_make_no_sense_are_refused(fields, complaint):
    with pytest.raises(InstanceError, match=complaint):
        Chain(**{**TWO_HOPS, **fields})


def test_json_keeps_media():
    chain = Chain(**TWO_HOPS, media=["reserved"], band_hz=[8.0], snr=np.ones((3, 3)))
    again = Chain.from_json(chain.to_json())
    assert again == chain
    assert again.features() == {"messages", "reserved", "radio", "free_ends"} - (
        {"messages"} if (chain.cut_messages == 1).all() else set()
    )
    assert again.rate_bytes_per_s[0, 1] == pytest.approx(1.0)  # 8 Hz, one bit per Hz at SNR 1


def test_what_shares_cannot_serve_at_once_is_refused_by_name():
    chain = Chain(**TWO_HOPS, media=["reserved"], max_period_s=100.0)
    with pytest.raises(UnsupportedError, match="reserved_conflict"):
        solve(chain)
    with pytest.raises(UnsupportedError, match="backend='exact'"):
        solve(Chain(**TWO_HOPS, media=["reserved"], objective="throughput"), "pulp")
    with pytest.raises(UnsupportedError, match="cannot express reserved"):
        solve(Chain(**TWO_HOPS, media=["reserved"]), "ortools")
