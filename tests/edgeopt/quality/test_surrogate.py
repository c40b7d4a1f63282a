"""The sum over steps finds losses that plans were made from, and tells when it cannot."""

from __future__ import annotations

import numpy as np
import pytest

from edgeopt.quality import fit_additive, rank_correlation, safety_margin

GAPS = np.array([[0.0, 0, 0, 0], [0.1, 0.2, 0.4, 0.8], [0.05, 0.05, 0.1, 0.3]])
PLANS = [[v] * 4 for v in range(3)] + [
    plan for v in (1, 2) for cut in (1, 2, 3) for plan in ([v] * cut + [0] * (4 - cut), [0] * cut + [v] * (4 - cut))
]
UNSEEN = [[1, 2, 2, 0], [2, 1, 0, 0], [0, 2, 1, 1]]


def _metric(loss, plans, base=0.5):
    return [base + sum(loss[v][i] for i, v in enumerate(plan)) for plan in plans]


def test_multiples_of_the_gaps_are_found_exactly():
    loss = 3.0 * GAPS
    fit = fit_additive(GAPS, 0, PLANS, _metric(loss, PLANS), 0.5)
    assert fit.scale == pytest.approx(3.0)
    assert fit.loss == pytest.approx(loss)
    assert fit.rms_error(UNSEEN, _metric(loss, UNSEEN)) == pytest.approx(0, abs=1e-9)


def test_plans_overrule_the_shape_of_the_gaps():
    loss = np.array([[0.0, 0, 0, 0], [2.0, 0.5, 0.2, 0.1], [0.6, 0.4, 0, 0]])
    sampled = _metric(loss, PLANS)
    drawn = fit_additive(GAPS, 0, PLANS, sampled, 0.5, pull=1e-6)
    assert drawn.loss == pytest.approx(loss, abs=1e-3)
    held = fit_additive(GAPS, 0, PLANS, sampled, 0.5, pull=1e6)
    assert held.loss == pytest.approx(held.scale * GAPS, rel=1e-3)
    assert drawn.rms_error(UNSEEN, _metric(loss, UNSEEN)) < held.rms_error(UNSEEN, _metric(loss, UNSEEN)) / 10


def test_gaps_fill_in_where_no_plan_looked():
    few = [[1, 1, 1, 1], [0, 0, 0, 0]]
    fit = fit_additive(GAPS[:2], 0, few, [3.5, 0.5], 0.5)
    assert fit.loss[1] == pytest.approx(2.0 * GAPS[1])


def test_losses_are_never_negative():
    fit = fit_additive(GAPS - 0.1, 0, PLANS, [0.5 - 0.1 * i for i in range(len(PLANS))], 0.5)
    assert (fit.loss >= 0).all()
    assert (fit.loss[0] == 0).all()


def test_a_saturating_metric_has_an_error():
    # The second half of a bad variant adds less than the first: no sum over steps can say so.
    sampled = [0.5 + min(1.0, sum(GAPS[v][i] for i, v in enumerate(plan))) for plan in PLANS]
    fit = fit_additive(GAPS, 0, PLANS, sampled, 0.5)
    assert fit.rms_error(PLANS, sampled) > 0.02


def test_refusals():
    with pytest.raises(ValueError, match="nothing to fit"):
        fit_additive(GAPS, 0, [[0, 0, 0, 0]], [0.5], 0.5)
    with pytest.raises(ValueError, match="plan steps"):
        fit_additive(GAPS, 0, [[0, 1]], [0.5], 0.5)


def test_rank_correlation():
    assert rank_correlation([1, 2, 3], [10, 20, 1000]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 2, 2, 3], [1, 3, 2, 4]) == pytest.approx(0.9486833)  # ties share 2.5
    assert np.isnan(rank_correlation([1, 1], [1, 2]))


class TestMargin:
    def test_the_smallest_that_covers_nine_of_ten(self):
        sampled = [2.0 * (1 + 0.01 * k) for k in range(19)]  # excesses of 0 to 18 %
        assert safety_margin([2.0] * 19, sampled) == pytest.approx(0.17)  # the 18th of 19: ceil(0.9 x 20)
        assert safety_margin([2.0] * 19, sampled[::-1], coverage=0.5) == pytest.approx(0.09)

    def test_few_plans_give_the_largest_excess_and_good_ones_none(self):
        assert safety_margin([1.0, 2.0, 4.0], [1.1, 2.4, 3.0]) == pytest.approx(0.2)
        assert safety_margin([1.0, 2.0], [0.9, 1.9]) == 0.0

    def test_a_further_plan_stays_within_it_as_often_as_promised(self):
        rng = np.random.default_rng(0)
        excess = rng.lognormal(0.0, 0.2, (4000, 21)) - 1  # skewed, and nothing that a normal quantile would fit
        covered = [row[20] <= safety_margin(np.ones(20), 1 + row[:20]) for row in excess]
        assert 0.9 <= np.mean(covered) < 0.93  # rank 19 of 20: 19/21 = 0.905

    def test_refusals(self):
        for predicted, sampled in (([1.0], [1.0, 2.0]), ([], []), ([0.0], [1.0])):
            with pytest.raises(ValueError, match="positive numbers"):
                safety_margin(predicted, sampled)
