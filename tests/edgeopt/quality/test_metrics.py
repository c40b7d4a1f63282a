"""Metrics against closed forms, brute force, and what must not change them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from edgeopt.quality import (
    FeatureSpace,
    evaluate,
    frechet_distance,
    kernel_distance,
    label_agreement,
    precision_recall,
)


def _with_moments(rng, count, mean, covariance):
    """Return samples whose mean and unbiased covariance are exactly the given ones."""
    x = rng.standard_normal((count, len(mean)))
    x -= x.mean(axis=0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.atleast_2d(np.cov(x, rowvar=False)))).T
    return x @ np.linalg.cholesky(covariance).T + mean


class TestFrechet:
    def test_commuting_gaussians(self):
        # Both covariances diagonal in one basis: |m|² + Σ (s - t)².
        rng = np.random.default_rng(0)
        basis, _ = np.linalg.qr(rng.standard_normal((4, 4)))
        s, t, shift = np.array([1.0, 2, 0.5, 3]), np.array([2.0, 2, 1, 0.1]), np.array([0.3, 0, -1, 2])
        x = _with_moments(rng, 60, np.zeros(4), basis @ np.diag(s**2) @ basis.T)
        y = _with_moments(rng, 40, shift, basis @ np.diag(t**2) @ basis.T)
        assert frechet_distance(x, y) == pytest.approx(shift @ shift + ((s - t) ** 2).sum(), rel=1e-9)

    def test_gaussians_that_do_not_commute(self):
        # In two dimensions tr (AB)^½ = sqrt(tr AB + 2 sqrt(det AB)).
        a, b = np.array([[2.0, 0.7], [0.7, 1.0]]), np.array([[1.0, -0.4], [-0.4, 3.0]])
        assert not np.allclose(a @ b, b @ a)
        rng = np.random.default_rng(1)
        x, y = _with_moments(rng, 30, np.zeros(2), a), _with_moments(rng, 50, np.array([1.0, 2]), b)
        cross = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a @ b)))
        assert frechet_distance(x, y) == pytest.approx(5 + np.trace(a) + np.trace(b) - 2 * cross, rel=1e-9)

    def test_one_dimension(self):
        rng = np.random.default_rng(2)
        x = _with_moments(rng, 20, np.array([1.0]), np.array([[4.0]]))
        y = _with_moments(rng, 20, np.array([-2.0]), np.array([[0.25]]))
        assert frechet_distance(x, y) == pytest.approx(9 + 1.5**2)

    def test_more_features_than_samples(self):
        x = np.random.default_rng(3).standard_normal((5, 12))
        assert frechet_distance(x, x) == pytest.approx(0, abs=1e-6)
        assert frechet_distance(x, x + 2) == pytest.approx(48, rel=1e-6)

    def test_bias_falls_with_the_count_and_the_kernel_has_none(self):
        # Draws of one distribution: why the counts are part of a figure.
        rng = np.random.default_rng(4)

        def both(count):
            x, y = rng.standard_normal((2, count, 8))
            return frechet_distance(x, y), kernel_distance(x, y)

        small, large = (np.mean([both(count) for _ in range(30)], axis=0) for count in (20, 200))
        assert small[0] > 5 * large[0] > 0
        assert abs(small[1]) < 0.1
        assert abs(large[1]) < 0.01


class TestKernel:
    def test_brute_force(self):
        rng = np.random.default_rng(5)
        x, y = rng.standard_normal((6, 3)), rng.standard_normal((4, 3)) + 1

        def k(a, b):
            return (float(a @ b) / 3 + 1) ** 3

        pairs = [k(a, b) for a, b in itertools.permutations(x, 2)]
        others = [k(a, b) for a, b in itertools.permutations(y, 2)]
        across = [k(a, b) for a, b in itertools.product(x, y)]
        assert kernel_distance(x, y) == pytest.approx(np.mean(pairs) + np.mean(others) - 2 * np.mean(across))

    def test_it_grows_with_the_shift(self):
        x = np.random.default_rng(6).standard_normal((200, 4))
        figures = [kernel_distance(x[:100], x[100:] + shift) for shift in (0, 0.5, 1, 2)]
        assert figures == sorted(figures)


class TestPrecisionRecall:
    def test_points_on_a_line(self):
        # Radii of the real points to their nearest: 1, 1, 1, 7; samples at 0.5 (inside), 6 (within 7 of 10), 30 (not).
        real, samples = np.array([[0.0], [1], [2], [9]]), np.array([[0.5], [6], [30]])
        # Of the samples: 5.5, 5.5, 24. The real points within: 0, 1, 2 (of 0.5), 9 (of 6).
        assert precision_recall(real, samples, 1) == pytest.approx((2 / 3, 1.0))

    def test_copies_of_one_image_are_precise_and_recall_little(self):
        rng = np.random.default_rng(7)
        real = rng.standard_normal((200, 5))
        samples = real[:1] + 1e-6 * rng.standard_normal((200, 5))
        precision, recall = precision_recall(real, samples)
        assert precision == 1
        assert recall <= 1 / 200

    def test_identical_sets(self):
        x = np.random.default_rng(8).standard_normal((30, 3))
        assert precision_recall(x, x) == (1, 1)

    def test_too_few_samples(self):
        with pytest.raises(ValueError, match="neighbours = 3"):
            precision_recall(np.eye(3), np.eye(3))


def test_the_order_of_samples_does_not_matter():
    rng = np.random.default_rng(9)
    x, y, labels = rng.standard_normal((40, 5)), rng.standard_normal((40, 5)) + 0.5, rng.integers(3, size=40)
    predicted = np.where(rng.random(40) < 0.8, labels, (labels + 1) % 3)
    order = rng.permutation(40)
    first = evaluate(x, y, labels, predicted)
    again = evaluate(x[rng.permutation(40)], y[order], labels[order], predicted[order])
    for key, value in first.document().items():
        assert again.document()[key] == pytest.approx(value, rel=1e-9), key


def test_identical_sets_score_what_they_should():
    x = np.random.default_rng(10).standard_normal((50, 6))
    found = evaluate(x, x, [1] * 50, [1] * 50)
    assert found.frechet == pytest.approx(0, abs=1e-9)
    assert found.kernel < 0  # pairs of a sample with itself count across, and not within
    assert (found.precision, found.recall, found.agreement) == (1, 1, 1)
    assert (found.num_real, found.num_samples) == (50, 50)


class TestFeatureSpace:
    def test_standardises_and_drops_what_never_moves(self):
        rng = np.random.default_rng(11)
        x = np.column_stack([5 + 100 * rng.standard_normal(80), np.full(80, 3.0), rng.standard_normal(80)])
        space = FeatureSpace.fit(x)
        assert space.live.tolist() == [True, False, True]
        assert space(x).mean(axis=0) == pytest.approx([0, 0], abs=1e-12)
        assert space(x).std(axis=0, ddof=1) == pytest.approx([1, 1])
        moved = space(x[:2] + np.array([100, 7, 0])) - space(x[:2])
        assert moved == pytest.approx(np.array([[100 / x[:, 0].std(ddof=1), 0]] * 2))

    def test_scale_of_the_features_no_longer_matters(self):
        rng = np.random.default_rng(12)
        train, a, b = (rng.standard_normal((60, 3)) for _ in range(3))
        units = np.array([1.0, 20, 0.1])
        raw, scaled = FeatureSpace.fit(train), FeatureSpace.fit(train * units)
        assert frechet_distance(scaled(a * units), scaled(b * units)) == pytest.approx(frechet_distance(raw(a), raw(b)))

    def test_refuses_what_is_no_sample(self):
        with pytest.raises(ValueError, match="none of 2 features"):
            FeatureSpace.fit(np.ones((5, 2)))
        with pytest.raises(ValueError, match="finite numbers"):
            FeatureSpace.fit(np.array([[1.0, np.nan], [0, 1]]))


def test_agreement():
    assert label_agreement([1, 2, 3, 4], [1, 2, 0, 4]) == 0.75
    with pytest.raises(ValueError, match="one length"):
        label_agreement([1, 2], [1])


def test_sets_of_different_spaces_are_refused():
    with pytest.raises(ValueError, match="3 and 4 features"):
        frechet_distance(np.eye(3), np.eye(4))
