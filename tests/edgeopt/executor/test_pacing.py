"""Rests after computing, cores apart, cores awake."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace

import pytest

from edgeopt.executor import cores
from edgeopt.executor.cores import awake, bind_computing, on_cores, split_cores
from edgeopt.executor.layout import Host
from edgeopt.executor.pacing import Started, computing_begins, exact_sleeps, rest

linux = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system binds no process to cores")


def host(threads: int = 1) -> Host:
    return Host(0, "phone", (0,), threads, 0.5, 1e9, "cpu")


def spin(seconds: float) -> None:
    """Use this much processor time."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


def test_rest_ends_when_a_slower_device_would_have() -> None:
    exact_sleeps()
    started = computing_begins(host())
    assert started.processor_s is not None
    spin(0.01)
    took = time.thread_time() - started.processor_s
    rest(started, 0.25)
    assert time.monotonic() - started.clock_s >= 4 * took


def test_time_without_a_core_is_taken_off_the_rest() -> None:
    started = computing_begins(host())
    spin(0.005)
    time.sleep(0.05)  # stands for another process on this core
    before = time.monotonic()
    rest(started, 0.5)
    assert time.monotonic() - before < 0.045, "less than without taking it off"


def test_several_threads_are_timed_by_the_clock() -> None:
    started = computing_begins(host(threads=2))
    assert started.processor_s is None
    assert computing_begins(replace(host(), accelerator="cuda")).processor_s is None
    time.sleep(0.02)
    rest(started, 0.5)
    assert time.monotonic() - started.clock_s >= 0.04


def test_full_speed_rests_not_at_all() -> None:
    before = time.monotonic()
    rest(Started(before - 10.0, None), None)
    assert time.monotonic() - before < 1.0


@linux
@pytest.mark.parametrize(
    ("usable", "threads", "one_at_a_time", "computing", "other"),
    [
        ({0, 1}, [1, 1, 1], True, [1], [0]),
        ({0, 1, 4, 5}, [1, 2, 1], True, [4, 5], [0, 1]),
        ({0, 1, 4, 5}, [1, 1, 1], False, [1, 4, 5], [0]),
    ],
)
def test_cores_are_divided(monkeypatch, usable, threads, one_at_a_time, computing, other) -> None:
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda pid: usable)
    assert split_cores(threads, one_at_a_time) == (computing, other)


@linux
@pytest.mark.parametrize(("threads", "one_at_a_time"), [([2], True), ([1, 1], False), ([4], True)])
def test_too_few_cores_are_not_divided(monkeypatch, threads, one_at_a_time) -> None:
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda pid: {0, 1})
    assert split_cores(threads, one_at_a_time) is None


@linux
def test_threads_stay_where_they_were_started() -> None:
    found: dict[str, set[int]] = {}
    usable = sorted(os.sched_getaffinity(0))

    def look(name: str) -> None:
        found[name] = os.sched_getaffinity(0)

    def worker() -> None:
        carrying = bind_computing(usable[-1:])
        with on_cores(carrying):
            beside = threading.Thread(target=look, args=("beside",))
            beside.start()
            beside.join()
        look("computing")

    bound = threading.Thread(target=worker)
    bound.start()
    bound.join()
    assert found == {"beside": set(usable), "computing": {usable[-1]}}
    assert bind_computing(None) is None
    with on_cores(None):
        assert sorted(os.sched_getaffinity(0)) == usable


def test_awake_says_whether_it_could(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(cores, "_LATENCY", str(tmp_path / "missing" / "latency"))
    with awake() as could:
        assert not could
    monkeypatch.setattr(cores, "_LATENCY", str(tmp_path / "latency"))
    with awake() as could:
        assert could
        assert (tmp_path / "latency").read_bytes() == bytes(4)
