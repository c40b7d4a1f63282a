"""Seconds of answers against sums over rounds, waiting against closed forms and a simulated line, intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgeopt.costs.answering import Stream, accuracy_interval, accuracy_needed, answer_s, waiting_s
from edgeopt.costs.language import LanguageCosts
from edgeopt.profiles.problem import TextWorkload
from tests.edgeopt.answer_cases import family
from tests.edgeopt.factories import device


def test_an_answer_is_a_prefill_and_its_rounds(tmp_path):
    model, load = family(tmp_path), TextWorkload(prompt_tokens=9, new_tokens=6)
    slow = device("slow", gflops=1, memory_bandwidth=1e6)
    prompts, tokens = np.array([3, 9, 5, 5]), np.array([6, 1, 2, 4])
    found, measured = answer_s(model, load, slow, prompts, tokens)
    assert not measured
    for seconds, prompt, count in zip(found, prompts.tolist(), tokens.tolist(), strict=True):
        costs = LanguageCosts(model, TextWorkload(prompt_tokens=prompt, new_tokens=count))
        assert seconds == pytest.approx(costs.prefill_s(slow)[0].sum() + costs.decode_s(slow)[0].sum())


def moments(samples: np.ndarray) -> dict[str, float]:
    return {"mean_s": float(samples.mean()), "square_s2": float((samples**2).mean())}


def test_one_device_waits_by_pollaczek_and_khinchine():
    exponential = Stream(0, -1, 1.0, 2.0, 8.0)
    assert waiting_s([exponential], 0.4)[0] == pytest.approx(0.8 / 0.2 * 2.0)  # M/M/1: rho / (mu - lambda)
    constant = Stream(0, -1, 1.0, 2.0, 4.0)
    assert waiting_s([constant], 0.4)[0] == pytest.approx(0.4 * 4.0 / (2 * 0.2))
    assert waiting_s([constant], 0.5)[0] == math.inf
    assert waiting_s([Stream(3, -1, 0.5, 1.0, 1.5), Stream(3, -1, 0.5, 3.0, 9.5)], 0.3)[3] == pytest.approx(
        0.3 * (0.5 * 1.5 + 0.5 * 9.5) / (2 * (1 - 0.6))
    )


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_two_devices_wait_as_a_simulated_line_does(load):
    """The first passes two fifths of its queries on, at once; the second is loaded nearly as much."""
    rng = np.random.default_rng(0)
    count = 500_000
    first, second = rng.choice([0.5, 1.0, 1.5], count), rng.choice([1.5, 2.0, 3.0], count)
    passed = rng.random(count) < 0.4
    rate = load / first.mean()
    streams = [Stream(0, -1, 1.0, **moments(first)), Stream(1, 0, float(passed.mean()), **moments(second))]
    predicted = waiting_s(streams, rate)
    arrivals = np.cumsum(rng.exponential(1 / rate, count))
    left = served(arrivals, first)
    done = served(left[passed], second[passed])
    waited = (left - arrivals - first).mean(), (done - left[passed] - second[passed]).mean()
    assert waited[0] == pytest.approx(predicted[0], rel=0.04)
    poisson = waiting_s([Stream(1, -1, float(passed.mean()), **moments(second))], rate)[1]
    assert abs(predicted[1] - waited[1]) < abs(poisson - waited[1])
    response = first.mean() + waited[0] + passed.mean() * (second.mean() + waited[1])
    assert first.mean() + predicted[0] + passed.mean() * (second.mean() + predicted[1]) == pytest.approx(
        response, rel=0.03
    )


def served(arrivals: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Return when each is done, first come first served (Lindley's recursion, unrolled)."""
    done = np.cumsum(seconds)
    return done + np.maximum.accumulate(arrivals - np.concatenate([[0.0], done[:-1]]))


def test_intervals_hold_as_often_as_they_say_and_floors_too():
    rng = np.random.default_rng(1)
    for true in (0.6, 0.9, 0.97):
        inside = broken = 0
        for _ in range(2000):
            fit, other = rng.random(300) < true, rng.random(200) < true
            interval = accuracy_interval(float(fit.sum()), 300, 200)
            inside += interval.low <= other.mean() <= interval.high
            broken += fit.mean() >= accuracy_needed(0.9, 300, 200) and other.mean() < 0.9
        assert inside / 2000 == pytest.approx(0.95, abs=0.02)
        assert broken / 2000 < 0.05
