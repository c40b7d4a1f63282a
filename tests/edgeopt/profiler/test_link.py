"""Latency and rate of a link from message times."""

from __future__ import annotations

import numpy as np
import pytest

from edgeopt.errors import InputError
from edgeopt.executor.environment import worker_environment
from edgeopt.profiler.link import fit_link, measure_link


@pytest.mark.parametrize(("latency_s", "rate"), [(5e-5, 3e9), (2e-3, 1e6), (0.0, 1e8)])
def test_fit_recovers_a_line(latency_s, rate):
    sizes = np.array([8, 256, 2048, 32768, 262144, 1048576])
    fitted = fit_link(sizes, latency_s + sizes / rate)
    assert fitted == pytest.approx((latency_s, rate), rel=1e-6, abs=1e-12)


def test_fit_bears_an_outlier():
    sizes = np.array([8, 64, 512, 4096, 32768, 131072, 262144, 1048576])
    seconds = 1e-4 + sizes / 1e9
    seconds[3] *= 8
    latency_s, rate = fit_link(sizes, seconds)
    assert latency_s == pytest.approx(1e-4, rel=0.05)
    assert rate == pytest.approx(1e9, rel=0.05)


def test_fit_never_answers_with_negative_terms():
    latency_s, rate = fit_link([8, 1024, 65536], [3e-4, 2e-4, 1e-4])
    assert latency_s > 0
    assert 0 < rate < float("inf")


def test_one_size_is_no_line():
    with pytest.raises(InputError, match="sizes_bytes"):
        measure_link(sizes_bytes=[8])


@pytest.mark.torch
@pytest.mark.processes
def test_loopback():
    pytest.importorskip("torch")
    found = measure_link(sizes_bytes=(8, 65536, 1048576), repeats=10)
    assert found.sizes_bytes == (8, 65536, 1048576)
    assert all(1e-6 < seconds < 1.0 for seconds in found.medians_s)
    assert 1e7 < found.quality.rate < 1e12
    assert 0 <= found.quality.latency < 0.1
    assert len(found.residuals) == 3


def test_environment_sets_threads_and_keeps_the_rest(monkeypatch):
    monkeypatch.setenv("SOMETHING_ELSE", "kept")
    environment = worker_environment(3)
    assert environment["OMP_NUM_THREADS"] == environment["MKL_NUM_THREADS"] == "3"
    assert environment["SOMETHING_ELSE"] == "kept"
    assert "PATH" in environment
    assert all(isinstance(value, str) for value in environment.values())
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert "OMP_NUM_THREADS" not in worker_environment(None)
