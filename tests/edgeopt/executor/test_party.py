"""Parties that talk freely: what a message holds, who may say what, and a request played by real processes."""

from __future__ import annotations

import threading
import time

import pytest

from edgeopt.errors import ExecutionError, InputError
from edgeopt.executor import execute
from edgeopt.executor.layout import Layout
from edgeopt.executor.messages import Trace
from edgeopt.executor.trace import compare_transfers, times_of

torch = pytest.importorskip("torch")
from edgeopt.executor.party import DTYPES, PIECE_BYTES, GlooLinks, pack_message, read_header  # noqa: E402
from edgeopt.executor.state import State  # noqa: E402
from edgeopt.programs.parties import PartyProgram, rehearse  # noqa: E402
from tests.edgeopt.executor import toy_parties  # noqa: E402
from tests.edgeopt.executor.toy_parties import parties_plan  # noqa: E402

pytestmark = pytest.mark.torch
NAMES = ("phone", "laptop", "server")


def received(tensors, label="", limit=1 << 30):
    """What the other end reads, piece by piece."""
    message = pack_message(3, 4, tensors, label)
    pieces = [message[at : at + PIECE_BYTES] for at in range(0, len(message), PIECE_BYTES)]
    # The buffer of a posted receive is longer than a short piece.
    pieces = [torch.cat([piece, torch.full((PIECE_BYTES - len(piece),), 255, dtype=torch.uint8)]) for piece in pieces]
    header, start = read_header(pieces[0], limit)
    for number, piece in enumerate(pieces):
        whole = header.fill(piece[start if number == 0 else 0 :])
        assert whole is (number == len(pieces) - 1)
    return header


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_tensor_arrives_as_it_was(dtype):
    tensors = [torch.arange(count).to(dtype).reshape(shape) for count, shape in ((1, ()), (6, (2, 3)), (0, (4, 0, 2)))]
    header = received(tensors, "cöntext")
    assert (header.request, header.number, header.label) == (3, 4, "cöntext")
    for there, here in zip(header.tensors, tensors, strict=True):
        assert there.dtype == here.dtype
        assert torch.equal(there, here)


@pytest.mark.parametrize("excess", [-200, -1, 0, 1, 5, PIECE_BYTES, 3 * PIECE_BYTES + 1])
def test_messages_around_the_size_of_a_piece(excess):
    tensor = torch.arange(PIECE_BYTES + excess) % 251
    assert torch.equal(received([tensor.to(torch.uint8), tensor[:3]]).tensors[0], tensor.to(torch.uint8))


def test_a_message_may_be_empty():
    assert received([]).tensors == []


def test_an_announced_size_is_refused_before_memory_is_taken():
    words = torch.tensor([0x65646765, 0, 0, 0, 1, 0, 2, 1 << 40, 1 << 20], dtype=torch.int64)
    with pytest.raises(ValueError, match="is announced, above the program's 1000"):
        read_header(words.view(torch.uint8), 1000)


@pytest.mark.parametrize(
    "words",
    [
        [1, 0, 0, 0, 0], [0x65646765, 0, 0, -1, 0], [0x65646765, 0, 0, 0, 1 << 40], [0x65646765, 0, 0, 0, 1, 99, 0],
        [0x65646765, 0, 0, 0, 1, 0, 99], [0x65646765, 0, 0, 0, 1, 0, 1, -5], [0x65646765, 0, 0, 0, 3],
    ],
)  # fmt: skip
def test_bytes_that_are_no_message_are_refused(words):
    with pytest.raises(ValueError, match=r"no message|announced|longer than a piece"):
        read_header(torch.tensor(words, dtype=torch.int64).view(torch.uint8), 1000)


def test_random_bytes_never_crash():
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        noise = torch.randint(0, 256, (512,), generator=generator).to(torch.uint8)
        noise[:8] = torch.tensor([0x65646765]).view(torch.uint8)
        noise[24:48] %= 3
        noise[25:32] = noise[33:40] = 0
        try:
            header, _ = read_header(noise, 1000)
        except ValueError:
            continue
        assert header.num_bytes <= 1000


def test_links_refuse_what_is_too_large_and_ranks_that_are_not_there():
    plan = parties_plan("phone", "phone", "phone")
    program = toy_parties.ToyParties(plan, (0, 1, 2))
    links = GlooLinks(program, Layout.of(plan), 0, None, State())
    links.begin(0)
    with pytest.raises(ValueError, match=r"message 'mix' of \d+ bytes is above the program's max_message_bytes"):
        links.send(0, [torch.zeros(program.max_message_bytes + 1, dtype=torch.uint8)], "mix")
    with pytest.raises(ValueError, match="no rank 5"):
        links.send(5, [])
    with pytest.raises(ValueError, match="stage 7 is not computed here"), links.computing(7):
        pass


def test_what_is_sent_may_be_changed_afterwards_and_old_requests_are_dropped():
    plan = parties_plan("phone", "phone", "phone")
    links = GlooLinks(toy_parties.ToyParties(plan, (0,)), Layout.of(plan), 0, None, State())
    links.begin(0)
    x = torch.ones(3)
    links.send(0, [x])
    links.send(0, [x + 1])
    x.zero_()
    assert links.receive(0)[0].tolist() == [1, 1, 1]
    links.end()
    links.begin(1)
    assert links.poll(0) is None
    assert links.spans.sent == [], "messages to oneself cross nothing"


def test_a_message_ends_the_wait_for_any():
    plan = parties_plan("phone", "phone", "phone")
    links = GlooLinks(toy_parties.ToyParties(plan, (0,)), Layout.of(plan), 0, None, State())
    links.begin(0)
    started_s = time.monotonic()
    links.await_any(0.05)
    assert time.monotonic() - started_s >= 0.05
    threading.Timer(0.05, links.send, (0, [torch.ones(2)])).start()
    links.await_any(30.0)
    assert time.monotonic() - started_s < 20.0
    message = links.poll(0)
    assert message is not None
    assert torch.equal(message[0], torch.ones(2))


def test_rehearsed_parties_agree_with_the_reference():
    plan = parties_plan(*NAMES)
    (result,) = rehearse(plan, 4, toy_parties.build)
    (expected,) = toy_parties.reference(plan, 4)
    assert torch.equal(result, expected)


def test_a_rehearsal_raises_what_a_party_raised():
    with pytest.raises(ValueError, match="max_message_bytes"):
        rehearse(parties_plan(*NAMES, fault="oversize", rank=2), 0, toy_parties.build)


def test_a_program_without_a_result_is_named():
    class Mute(toy_parties.ToyParties):
        def play(self, links, inputs):
            return None

    with pytest.raises(ValueError, match="Mute returned no result"):
        rehearse(parties_plan(*NAMES), 0, Mute)
    assert issubclass(Mute, PartyProgram)


def test_times_of_messages_are_joined_by_pair_number_and_label():
    plan = parties_plan(*NAMES)
    common = {"request": 0, "warmup": False, "sends": [], "receives": []}
    traces = {
        0: Trace(**common, start=0.0, stop=1.0, digest="x", computes=[(0, 0, 0.1, 0.3)],
                 sent=[(1, 0, "mix", 100, 0.3), (1, 1, "mix", 50, 0.4)], taken=[(1, 0, 0.4, 0.95, 0.9)]),
        1: Trace(**common, computes=[(1, 0, 0.5, 0.7)], sent=[(0, 0, "mix", 10, 0.7)],
                 taken=[(0, 0, 0.2, 0.5, 0.45)]),
        2: Trace(**common, computes=[]),
    }  # fmt: skip
    layout = Layout.of(plan)
    times = times_of(layout, traces)
    assert times.latency_s == 1.0
    there = times.moved[0, 1, "mix"]
    assert (there.seconds, there.num_bytes, there.messages) == (pytest.approx(0.15), 150, 2), "one was never taken"
    assert times.moved[1, 0, "mix"].seconds == pytest.approx(0.2)
    assert times.compute_s[2] == [0.0], "a party may have nothing to do"
    assert times.waiting_s[0] == pytest.approx(0.55)
    assert times.active_s[1] == pytest.approx(0.5)
    first = compare_transfers(plan, layout, [times])[0]
    assert (first.purpose, first.source, first.destination) == ("mix", "phone", "laptop")
    assert first.predicted_bytes == 1.0
    with pytest.raises(ValueError, match="nobody noted"):
        times_of(layout, traces | {2: Trace(**common, computes=[], taken=[(1, 0, 0.0, 0.1, 0.1)])})


def test_in_flight_is_refused():
    with pytest.raises(InputError, match="one request at a time"):
        execute(parties_plan(*NAMES), in_flight=2)


@pytest.mark.processes
def test_processes_agree_with_the_reference():
    report = execute(parties_plan(*NAMES), repeat=2, _command=toy_parties.COMMAND, seed=3)
    assert report.output is not None
    assert report.output.equal
    assert report.output.repeats_equal
    mixed = [t for t in report.transfers if t.purpose == "mix"]
    assert len(mixed) == 6
    assert {t.messages for t in mixed} == {toy_parties.ROUNDS}
    assert all(t.predicted_bytes == 1.0 and t.bytes > 4 * toy_parties.ROWS for t in mixed)
    hint = next(t for t in report.transfers if t.purpose == "hint")
    assert (hint.source, hint.destination, hint.bytes, hint.messages) == ("laptop", "phone", 1, 1)
    assert [stage.device for stage in report.stages] == list(NAMES)
    assert all(stage.compute_s.median > 0 for stage in report.stages)
    split = report.error
    assert split.total_s == pytest.approx(split.compute_s + split.transfer_s + split.overhead_s)
    assert any(bar.label == "mix" for bar in report.timeline)


@pytest.mark.processes
def test_a_party_that_falls_silent_is_named():
    plan = parties_plan(*NAMES, fault="silent", rank=1)
    with pytest.raises(ExecutionError) as caught:
        execute(plan, check=False, stall_s=2.0, timeout_s=60, _command=toy_parties.COMMAND)
    assert caught.value.device == "laptop"
    assert "nothing has come from 'laptop'" in caught.value.reason
