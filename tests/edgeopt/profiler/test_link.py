"""Latency and rate of a link from message times."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from edgeopt.cli import main
from edgeopt.errors import InputError
from edgeopt.executor.environment import worker_environment
from edgeopt.executor.meeting import Meeting, listen
from edgeopt.profiler.jobs import LinkRun
from edgeopt.profiler.link import LinkRequest, clock_offsets_s, fit_link, measure_link
from edgeopt.profiles import load_network


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


def test_fit_bears_a_token_bucket_that_lets_small_messages_pass():
    sizes = np.array([8, 256, 2048, 8192, 32768, 131072, 262144, 524288, 1048576])
    seconds = 1.7e-4 + np.maximum(0, sizes - 3000) / 2.4e6
    latency_s, rate = fit_link(sizes, seconds)
    assert rate == pytest.approx(2.4e6, rel=0.04)
    assert latency_s < 5e-4


def test_fit_never_answers_with_negative_terms():
    latency_s, rate = fit_link([8, 1024, 65536], [3e-4, 2e-4, 1e-4])
    assert latency_s > 0
    assert 0 < rate < float("inf")


def test_one_size_is_no_line():
    with pytest.raises(InputError, match="sizes_bytes"):
        measure_link(LinkRequest(sizes_bytes=[8]))


def test_clocks_are_set_by_the_quickest_ping():
    """Rank 1's clock is 5 s ahead; one of the pings is delayed on its way back."""
    pings = [[(0.0, 0.010), (1.0, 1.002), (2.0, 2.004)]]
    answers = [[(5.004, 5.004), (6.001, 6.001), (7.002, 7.002)]]
    here = LinkRun(sender=0, pause_s=0.0, pings_s=pings, moments_s=[[0.0]])
    there = LinkRun(sender=0, pause_s=0.0, pings_s=answers, moments_s=[[5.0]])
    assert clock_offsets_s(here, there) == pytest.approx([5.0], abs=1e-12)


@pytest.mark.torch
@pytest.mark.processes
def test_loopback():
    pytest.importorskip("torch")
    found = measure_link(LinkRequest(sizes_bytes=[8, 65536, 1048576], repeats=10, pause_s=0.01))
    assert found.fit.sizes == [8, 65536, 1048576]
    assert all(1e-6 < seconds < 1.0 for seconds in found.fit.medians)
    assert 1e7 < found.rate < 1e12
    assert 0 <= found.latency < 0.1
    assert found.jitter >= 0
    assert len(found.fit.residuals) == len(found.fit.spreads) == 3
    assert (found.fit.pause, found.fit.clock) == (0.01, "shared")
    fitted = [found.latency + size / found.rate for size in found.fit.sizes]
    assert found.fit.residuals == pytest.approx(
        [(a - b) / b for a, b in zip(fitted, found.fit.medians, strict=True)], rel=1e-9
    )


EDGEOPT = [sys.executable, "-m", "edgeopt"]


def measured(tmp_path, address, here=(), there=(), words=()):
    """Measure by two commands, as two people would type them; return the network and what both printed."""
    target = tmp_path / "net.yaml"
    listen = [*there, *EDGEOPT, "profile", "link", "--listen", f"{address}:0", "--timeout", "60s"]
    with subprocess.Popen(listen, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as waiting:
        try:
            command = waiting.stderr.readline().partition("edgeopt ")[2].split()
            assert command[:2] == ["profile", "link"]
            stranger = [word if word != command[-1] else "wrong" for word in command]
            refused = subprocess.run([*here, *EDGEOPT, *stranger], capture_output=True, text=True, check=False)
            assert refused.returncode == 1
            assert "the token is another" in refused.stderr
            short = ["--repeats", "5", "--pause", "5 ms", "--timeout", "60s", *words, "-o", str(target)]
            done = subprocess.run([*here, *EDGEOPT, *command, *short], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            printed, errors = waiting.communicate(timeout=30)
            assert waiting.returncode == 0, errors
            assert "measured with" in printed
        finally:
            waiting.kill()
    assert command[-1] not in target.read_text(), "the token does not belong into a profile"
    return load_network(str(target))


@pytest.mark.torch
@pytest.mark.processes
def test_two_machines_are_measured_both_ways(tmp_path):
    pytest.importorskip("torch")
    network = measured(tmp_path, "127.0.0.1", words=["--devices", "laptop,desktop", "--name", "mine"])
    assert network.name == "mine"
    assert [(link.from_, link.to) for link in network.links] == [("laptop", "desktop"), ("desktop", "laptop")]
    for link in network.links:
        assert 1e6 < link.rate < 1e12
        assert 0 <= link.latency < 0.1
        assert link.fit.clock == "estimated"
        assert (link.fit.repeats, link.fit.pause) == (5, 0.005)


@pytest.mark.torch
@pytest.mark.processes
@pytest.mark.skipif(shutil.which("ip") is None or os.geteuid() != 0, reason="needs root and `ip netns`")
def test_two_namespaces_with_a_shaped_wire(tmp_path):
    """20 Mbit/s by a token bucket one way; the fit finds that rate there, and a faster one back."""
    pytest.importorskip("torch")
    a, b = (f"link{os.getpid()}{side}" for side in "ab")
    wire = [
        f"ip netns add {a}", f"ip netns add {b}",
        f"ip link add v{a[-6:]} netns {a} type veth peer name v{b[-6:]} netns {b}",
        f"ip -n {a} addr add 198.51.100.1/24 dev v{a[-6:]}", f"ip -n {b} addr add 198.51.100.2/24 dev v{b[-6:]}",
        f"ip -n {a} link set v{a[-6:]} up", f"ip -n {b} link set v{b[-6:]} up",
        f"ip -n {a} link set lo up", f"ip -n {b} link set lo up",
        f"tc -n {a} qdisc add dev v{a[-6:]} root tbf rate 20mbit burst 3200 latency 400ms",
    ]  # fmt: skip
    try:
        for command in wire:
            done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"no namespaces or token buckets here: {command}: {done.stderr.strip()}")
        inside = [["ip", "netns", "exec", name] for name in (a, b)]
        network = measured(tmp_path, "198.51.100.2", *inside, words=["--devices", "near,far"])
    finally:
        for name in (a, b):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    there, back = network.links
    assert there.rate == pytest.approx(20e6 / 8 * 0.955, rel=0.15)  # frames and headers take 4.5 %
    assert back.rate > 2 * there.rate


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "there is no machine to measure to"),
        (["nas"], "edgeopt profile link --listen nas"),
        (["nas", "--listen", "127.0.0.1"], "the side that listens writes nothing"),
        (["--listen", "0.0.0.0"], "every interface"),
        (["--listen", "203.0.113.9"], "cannot listen on"),
        (["--listen", "127.0.0.1:99999"], "is not an address"),
        (["loopback", "--devices", "a,b"], "loopback has one device"),
        (["nas", "--token", "x", "--devices", "a"], "not two names"),
        (["loopback", "--pause", "20"], "has no unit"),
        (["loopback", "--repeats", "0"], "repeats"),
    ],
)
def test_refusals_through_the_command(words, message, capsys):
    assert main(["profile", "link", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_silent_stranger_does_not_block_the_listener():
    with listen("127.0.0.1", 0) as listener:
        address = listener.getsockname()
        rude = socket.create_connection(address)
        rude.sendall(b"GET / HTTP/1.0\r\n\r\n")
        deadline = time.monotonic() + 20
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(Meeting.accept, listener, "secret", deadline)
            meeting = Meeting.connect(*address, "secret", {"repeats": 3}, deadline)
            other, request = waiting.result()
        assert request == {"repeats": 3}
        for one in (meeting, other):
            one.close()
        rude.close()


def test_environment_sets_threads_and_keeps_the_rest(monkeypatch):
    monkeypatch.setenv("SOMETHING_ELSE", "kept")
    environment = worker_environment(3)
    assert environment["OMP_NUM_THREADS"] == environment["MKL_NUM_THREADS"] == "3"
    assert environment["SOMETHING_ELSE"] == "kept"
    assert "PATH" in environment
    assert all(isinstance(value, str) for value in environment.values())
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert "OMP_NUM_THREADS" not in worker_environment(None)
