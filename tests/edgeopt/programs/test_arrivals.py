"""Streams of requests: arrivals are Poisson, answers come in order of arrival, a failure ends all waiting."""

from __future__ import annotations

import math
import threading

import pytest

torch = pytest.importorskip("torch")

from edgeopt.executor.messages import Trace  # noqa: E402
from edgeopt.profiles.problem import TextWorkload  # noqa: E402
from edgeopt.programs.arrivals import Ask, draw_stream, mean_interval, play_stream  # noqa: E402
from edgeopt.programs.parties import _InMemory, _Room  # noqa: E402

pytestmark = pytest.mark.torch


def load(rate=100.0, requests=20):
    return TextWorkload(prompt_tokens=4, new_tokens=4, requests_per_s=rate, requests=requests)


def test_arrivals_are_those_of_a_poisson_process():
    times, classes, queries = draw_stream(load(50.0, 20_000), [[1, 2], [7]], [3.0, 1.0], seed=0)
    gaps = torch.diff(times)
    assert (gaps > 0).all()
    assert float(gaps.mean()) == pytest.approx(1 / 50, rel=0.03)
    assert float(gaps.std() / gaps.mean()) == pytest.approx(1.0, rel=0.03)
    assert float((classes == 0).double().mean()) == pytest.approx(0.75, abs=0.02)
    assert set(queries[classes == 0].tolist()) == {1, 2}
    assert set(queries[classes == 1].tolist()) == {7}
    again = draw_stream(load(50.0, 20_000), [[1, 2], [7]], [3.0, 1.0], seed=0)
    assert torch.equal(times, again[0])
    assert not torch.equal(times, draw_stream(load(50.0, 20_000), [[1, 2], [7]], [3.0, 1.0], seed=1)[0])


def test_the_interval_covers_the_mean_of_what_depends_on_its_neighbours():
    generator = torch.Generator().manual_seed(0)
    inside, runs = 0, 200
    for _ in range(runs):
        noise = torch.randn(2000, generator=generator).tolist()
        values, last = [], 0.0
        for each in noise:
            last = 0.8 * last + each  # an autoregression around 0
            values.append(last + 5.0)
        interval = mean_interval(values)
        inside += interval.low <= 5.0 <= interval.high
    assert 0.9 <= inside / runs <= 1.0
    assert mean_interval([1.0, 2.0]).low == -math.inf


class Noting(_InMemory):
    """Links that keep what was answered when."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.noted = []
        self.looked = 0

    def poll(self, source):
        self.looked += 1
        return super().poll(source)

    def answered(self, query, arrived_s, answered_s):
        self.noted.append((query, answered_s - arrived_s))


def play(times, onward, answer, ranks=3, hosts=False, source=None):
    """Play a stream with workers as threads; the source's notes."""
    room = _Room()
    source = source or Noting(0, ranks, room, 1 << 16)
    room = source._room

    def work(rank):
        try:
            play_stream(_InMemory(rank, ranks, room, 1 << 16), ranks, answer)
        except BaseException as error:
            room.fail(error)

    threads = [threading.Thread(target=work, args=(rank,), daemon=True) for rank in range(1, ranks)]
    for thread in threads:
        thread.start()
    try:
        play_stream(source, ranks, answer, torch.tensor(times, dtype=torch.float64), onward, hosts=hosts)
    finally:
        for thread in threads:
            thread.join(5.0)
    if room.failure is not None:
        raise room.failure
    return source.noted


@pytest.mark.parametrize("hosts", [False, True])
def test_each_party_answers_in_order_of_arrival(hosts):
    order = []

    def answer(stage, tensors):
        order.append((stage, int(tensors[0])))
        return [tensors[0] + 100]

    said = {}

    def onward(query, stage, told):
        if stage is None:
            return Ask(query % 3 if hosts else 1 + query % 2, query % 3, [torch.tensor(query)])
        said[query] = int(told[0])
        return None

    noted = play([0.0, 0.01, 0.02, 0.02, 0.03, 0.04, 0.05], onward, answer, hosts=hosts)
    assert said == {query: query + 100 for query in range(7)}
    assert sorted(query for query, _ in noted) == list(range(7))
    assert all(seconds >= 0 for _, seconds in noted)
    for rank in range(3):
        served = [query for stage, query in order if (query % 3 if hosts else 1 + query % 2) == rank]
        assert served == sorted(served)


def test_requests_are_released_while_others_wait():
    """One slow party: three at once take one, two and three times as long."""
    import time

    def answer(stage, tensors):
        time.sleep(0.05)
        return []

    noted = play([0.0, 0.0, 0.0], lambda q, stage, told: Ask(1, 0, []) if stage is None else None, answer, ranks=2)
    seconds = [took for _, took in sorted(noted)]
    assert seconds[0] < 0.09
    assert seconds[2] > 0.14


def test_the_source_sleeps_until_something_happens():
    """It may compute beside: looking for answers thousands of times a second would slow that down."""
    source = Noting(0, 2, _Room(), 1 << 16)
    play([0.0, 0.4], lambda q, stage, told: Ask(1, 0, []) if stage is None else None, lambda *_: [], 2, source=source)
    assert 2 * 2 <= source.looked < 60
    assert len(source.noted) == 2


def test_what_arrives_ends_the_sleep():
    import time

    room = _Room()
    one, other = (_InMemory(rank, 2, room, 64) for rank in (0, 1))
    for send in (False, True):
        started_s = time.monotonic()
        timer = threading.Timer(0.05, other.send, (0, []))
        if send:
            timer.start()
        one.await_any(0.3)
        assert (time.monotonic() - started_s < 0.25) == send
        assert (one.poll(1) == []) == send


@pytest.mark.parametrize("hosts", [False, True])
def test_a_failure_of_any_part_ends_the_stream(hosts):
    def broken(stage, tensors):
        raise ValueError("no model")

    def ask(query, stage, told):
        return Ask(0 if hosts else 1, 0, []) if stage is None else None

    with pytest.raises(Exception, match=r"no model|^$"):
        play([0.0, 0.01], ask, broken, hosts=hosts)

    def lost(query, stage, told):
        raise KeyError("whom to ask")

    if hosts:
        with pytest.raises(KeyError, match="whom to ask"):
            play([0.0], lost, broken, ranks=1, hosts=True)


def test_traces_carry_answers():
    trace = Trace(request=0, warmup=False, computes=[], sends=[], receives=[], answers=[(0, 1.0, 2.0)])
    assert Trace.model_validate_json(trace.model_dump_json()).answers == [(0, 1.0, 2.0)]
