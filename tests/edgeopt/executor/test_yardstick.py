"""A device keeps the speed at which it was measured on a machine that does not."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

pytest.importorskip("torch")

from edgeopt.executor import yardstick
from edgeopt.executor.layout import Host
from edgeopt.executor.pacing import computing_begins, exact_sleeps, rest, warm_up

HOST = Host(0, "phone", (0,), 1, 0.25, 1e9, "cpu", 30e-6)


def computed(monkeypatch: pytest.MonkeyPatch, host: Host, before_s: float, after_s: float) -> tuple[float, float]:
    """Compute for 5 ms of processor time; seconds at the whole speed, and until the rest ended."""
    laps = iter([before_s, after_s])
    monkeypatch.setattr(yardstick, "applied", lambda which: next(laps))
    yardstick._readings["cached"].clear()
    started = computing_begins(host)
    assert started.processor_s is not None
    while time.thread_time() < started.processor_s + 0.005:
        pass
    took_s = rest(started, host.cpu_quota)
    assert took_s is not None
    return took_s, time.monotonic() - started.clock_s


def test_what_a_slow_moment_takes_counts_for_less(monkeypatch: pytest.MonkeyPatch) -> None:
    exact_sleeps()
    took_s, until_s = computed(monkeypatch, HOST, 50e-6, 70e-6)
    assert 0.0025 <= took_s < 0.0035  # half of what the slow machine took, and little for looking at the clock
    assert took_s / 0.25 <= until_s < took_s / 0.25 + 0.1  # where nothing else runs, 0.1 ms


def test_a_fast_moment_counts_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    took_s, until_s = computed(monkeypatch, HOST, 20e-6, 10e-6)
    assert took_s >= 0.01
    assert until_s >= 0.04


def test_only_one_paced_thread_of_a_processor_is_measured_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yardstick, "applied", lambda which: pytest.fail("applied"))
    for other in (
        replace(HOST, cpu_quota=None), replace(HOST, yardstick_s=None), replace(HOST, threads=2),
        replace(HOST, accelerator="cuda"),
    ):  # fmt: skip
        assert computing_begins(other).yardstick_s is None


def test_the_last_readings_count_together(monkeypatch: pytest.MonkeyPatch) -> None:
    yardstick._readings["cached"].clear()
    laps = iter([*[9.0] * 5, *[2.0, 4.0] * (yardstick.RECENT // 2)])
    monkeypatch.setattr(yardstick, "applied", lambda which: next(laps))
    assert [yardstick.lately() for _ in range(6)] == pytest.approx([9.0] * 5 + [47 / 6])
    for _ in range(yardstick.RECENT - 1):
        last = yardstick.lately()
    assert last == pytest.approx(3.0)
    yardstick._readings["cached"].clear()


@pytest.mark.parametrize(("which", "most_s"), [("cached", 1e-2), ("streamed", 1e-1)])
def test_the_yardsticks_themselves_take_little(which, most_s: float) -> None:
    laps = [yardstick.applied(which) for _ in range(5)]
    assert all(1e-6 < lap < most_s for lap in laps)


def test_what_is_read_from_memory_has_a_yardstick_of_its_own_where_a_rest_is_long_enough(monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(yardstick, "applied", lambda which: asked.append(which) or 2e-3)
    yardstick._readings["streamed"].clear()
    host = replace(HOST, yardstick="streamed", yardstick_s=1e-3)
    warm_up(host)
    assert set(asked) == {"streamed"}
    asked.clear()
    assert rest(computing_begins(host), 0.25) < 1e-3
    assert not asked, "nothing was computed, so that there is no rest"
    started = computing_begins(host)
    while time.thread_time() < started.processor_s + 0.005:
        pass
    assert 0.0025 <= rest(started, 0.25) < 0.0035, "at half of the usual speed"
    assert asked == ["streamed"]
    yardstick._readings["streamed"].clear()
