"""What a stranger, a broken worker or another version may send: it is refused with clear words, and nothing crashes."""

from __future__ import annotations

import contextlib
import io
import json
import socket
import struct
import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.cli import main
from edgeopt.errors import ExecutionError
from edgeopt.executor.channel import PROTOCOL
from edgeopt.executor.endpoint import SocketEndpoint
from edgeopt.executor.frames import GREETING_BYTES, MAX_BYTES, FrameError, Frames, frame, read_frame
from edgeopt.executor.layout import Layout
from edgeopt.executor.meeting import Gate, Meeting, listen
from edgeopt.executor.messages import Ready
from edgeopt.executor.supervise import Crew
from tests.edgeopt.executor.plans import toy_plan

DRAWS = settings(max_examples=60, deadline=None, derandomize=True)


@DRAWS
@given(st.lists(st.binary(max_size=300), max_size=8), st.lists(st.integers(1, 40), max_size=60))
def test_frames_survive_any_cut(payloads: list[bytes], pieces: list[int]) -> None:
    data = b"".join(map(frame, payloads))
    frames, found, at = Frames(), [], 0
    for piece in [*pieces, len(data)]:
        found += frames.feed(data[at : at + piece])
        at += piece
    assert found == payloads
    stream = io.BytesIO(data)
    assert [read_frame(stream.read) for _ in payloads] == payloads
    assert read_frame(stream.read) is None


@DRAWS
@given(st.binary(max_size=200))
def test_noise_is_frames_or_an_error_and_the_same_either_way(data: bytes) -> None:
    """Both readers agree on what arrives, with an independent reading of the length as the yardstick."""
    limit, expected, rest, sound = 100, [], data, True
    while sound and len(rest) >= 4:
        size = int.from_bytes(rest[:4], "big")
        sound = size <= limit
        if not sound or len(rest) < 4 + size:
            break
        expected.append(rest[4 : 4 + size])
        rest = rest[4 + size :]
    frames = Frames(limit)
    if sound:
        assert frames.feed(data) == expected
    else:
        with pytest.raises(FrameError, match="larger than the 100 bytes"):
            frames.feed(data)
    stream = io.BytesIO(data)
    for payload in expected:
        assert read_frame(stream.read, limit) == payload
    if not sound or rest:
        with pytest.raises(FrameError):
            read_frame(stream.read, limit)


def test_a_length_is_judged_before_anything_is_read_for_it() -> None:
    asked: list[int] = []

    def read(count: int) -> bytes:
        asked.append(count)
        return struct.pack(">I", 2**32 - 1)

    with pytest.raises(FrameError, match=f"{2**32 - 1} bytes is larger than the {MAX_BYTES}"):
        read_frame(read)
    assert asked == [4]
    with pytest.raises(FrameError):
        frame(b"x" * 101, limit=100)


class _Door:
    """A gate on the loopback address, and what it said about those whom it turned away."""

    def __init__(self) -> None:
        self.away: list[str] = []

    def __enter__(self) -> _Door:
        self.listener = listen("127.0.0.1", 0)
        self.address = self.listener.getsockname()
        self.deadline = time.monotonic() + 20
        self.gate = Gate(self.listener, "the token", PROTOCOL, self.deadline, self.away.append).__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self.gate.__exit__(*exception)
        self.listener.close()

    def call(self, token: str = "the token", protocol: str = PROTOCOL) -> Meeting:
        return Meeting.connect(*self.address, token, {"device": "phone"}, self.deadline, protocol=protocol)

    def until(self, condition: Callable[[], bool]) -> None:
        while not condition() and time.monotonic() < self.deadline:
            time.sleep(0.005)
        assert condition()


def test_only_who_knows_the_token_and_the_protocol_gets_in() -> None:
    with _Door() as door:
        silent = socket.create_connection(door.address)
        with pytest.raises(ExecutionError, match="the token is another"):
            door.call("a guess")
        with pytest.raises(ExecutionError, match=f"this side speaks {PROTOCOL}"):
            door.call(protocol="edgeopt-run/0")
        started_s = time.monotonic()
        with contextlib.closing(door.call()):
            meeting, request = door.gate.admitted.get(timeout=5)
            assert request == {"device": "phone"}
            assert time.monotonic() - started_s < 4, "the silent stranger holds nobody up"
            meeting.close()
        silent.close()
        door.until(lambda: len(door.away) == 3)
        assert set(door.away) == {"127.0.0.1"}


def test_an_impostor_who_listens_learns_no_token_and_is_found_out() -> None:
    with listen("127.0.0.1", 0) as listener:

        def pose() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(frame(b'{"nonce": "0"}') + frame(b'{"proof": "0"}'))
                heard.append(connection.recv(4096))
                heard.append(connection.recv(4096))

        heard: list[bytes] = []
        thread = threading.Thread(target=pose)
        thread.start()
        with pytest.raises(ExecutionError, match="does not know the token"):
            Meeting.connect(*listener.getsockname(), "the token", {}, time.monotonic() + 10)
        thread.join()
    assert b"the token" not in b"".join(heard)


RUDE = {
    "http": b"GET / HTTP/1.0\r\n\r\n",
    "too large": struct.pack(">I", GREETING_BYTES + 1) + b"x" * 100,
    "nothing": b"",
    "half a frame": frame(b'{"protocol": "')[:-3],
    "no JSON": frame(b"\xff\xfe"),
    "no mapping": frame(b"[1, 2]"),
    "deep": frame(b"[" * GREETING_BYTES),
    "a large number": frame(b"9" * GREETING_BYTES),
    "odd text": frame(b'{"nonce": "\\ud800"}') + frame('{"proof": "\u00e4", "request": {}}'.encode()),
    "odd types": frame(b'{"nonce": [1], "protocol": {}}') + frame(b'{"proof": 7, "request": 3}'),
}


@pytest.mark.parametrize("case", RUDE)
def test_the_rude_are_turned_away_and_others_still_come(case: str) -> None:
    with _Door() as door:
        with socket.create_connection(door.address) as rude:
            rude.sendall(RUDE[case])
            with contextlib.suppress(OSError):  # the gate may have hung up already, which is what it is asked to do
                rude.shutdown(socket.SHUT_WR)
            door.until(lambda: door.away == ["127.0.0.1"])
        door.call().close()
        door.gate.admitted.get(timeout=5)[0].close()


@DRAWS
@given(
    st.one_of(
        st.binary(max_size=200),
        st.lists(
            st.recursive(
                st.none() | st.booleans() | st.floats() | st.text(max_size=8) | st.integers(),
                lambda inner: (
                    st.lists(inner, max_size=3)
                    | st.dictionaries(st.sampled_from(["nonce", "proof", "protocol", "request"]) | st.text(), inner)
                ),
                max_leaves=8,
            ),
            max_size=3,
        ).map(lambda documents: b"".join(frame(json.dumps(document).encode()) for document in documents)),
    )
)
def test_no_greeting_but_the_right_one_is_admitted(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    theirs.sendall(data)
    theirs.shutdown(socket.SHUT_WR)
    assert Meeting.admit(ours, "the token", time.monotonic() + 5) is None
    assert ours.fileno() == -1
    theirs.close()


def heard_from(data: bytes) -> str:
    """Return the error of a run whose worker, which has proven the token, sends ``data`` and hangs up."""
    ours, theirs = socket.socketpair()
    theirs.sendall(data)
    theirs.close()
    host = Layout.of(toy_plan(("phone", 6))).hosts[0]
    with Crew(10.0, lambda host, event: None, time.monotonic()) as crew:
        crew.add(host, SocketEndpoint(ours, None, None), b"{}")
        with pytest.raises(ExecutionError) as caught:
            crew.wait_for(Ready)
    assert (caught.value.device, caught.value.stage) == ("phone", 0)
    assert ours.fileno() == -1
    return caught.value.reason


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (struct.pack(">I", MAX_BYTES + 1), f"a frame of {MAX_BYTES + 1} bytes is larger than"),
        (frame(b'{"event": "nothing"}'), "said what no worker says"),
        (frame(b'{"event": "ready", "build_s": 1, "code": "import os"}'), "said what no worker says"),
        (frame(b"[" * 100_000), "said what no worker says"),
        (b"", "the connection to it closed"),
        (frame(b"{}")[:3], "the connection to it closed"),
    ],
)
def test_a_worker_that_breaks_the_rules_ends_the_run(data: bytes, words: str) -> None:
    assert words in heard_from(data)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.one_of(st.binary(max_size=300), st.lists(st.binary(max_size=60)).map(lambda all: b"".join(map(frame, all)))))
def test_no_noise_of_a_worker_crashes_the_driver(data: bytes) -> None:
    assert heard_from(data)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "edgeopt-plan/2"}, ["format", "edgeopt-plan/2", "solve the problem again"]),
        ({"format": None}, ["format", "is not the plan format"]),
        ({"code": "import os"}, ["code", "unknown"]),
        ({"stages": "os.system"}, ["stages"]),
    ],
)
def test_a_plan_of_another_version_is_refused(change: dict, words: list[str], tmp_path, capsys) -> None:
    document = toy_plan(("phone", 6)).model_dump(mode="json", by_alias=True) | change
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(document))
    assert main(["execute", str(path)]) == 2
    said = capsys.readouterr().err
    assert [word for word in words if word not in said] == [], said
