"""Messages of parties that talk freely, over gloo: shapes come with the message, and nobody waits to send.

A message is a header and its tensors, one after the other, in pieces of at most :data:`PIECE_BYTES`. For each peer some
receives of that size are always posted, so that a piece leaves as soon as it is sent: gloo would otherwise ask first,
which takes a round trip. A thread per peer takes the pieces off the wire. What the header announces is checked before
memory is taken for it.

Header: 64-bit numbers (mark, request, number, bytes of the label, tensors; then for each tensor its dtype's place in
:data:`DTYPES`, its dimensions and their sizes), the label in UTF-8, all filled up to a multiple of :data:`_ALIGN`, like
every tensor after it.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from edgeopt.executor.layout import Layout
from edgeopt.executor.pacing import computing_begins, rest
from edgeopt.executor.serve import Spans
from edgeopt.executor.state import State
from edgeopt.executor.transport import Peers, TransportError
from edgeopt.programs.parties import Links, PartyProgram, check_message

__all__ = ["DTYPES", "PIECE_BYTES", "GlooLinks", "Header", "pack_message", "play_parties", "read_header"]

PIECE_BYTES = 1 << 19
DTYPES = (
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool, torch.float16, torch.bfloat16,
    torch.float32, torch.float64, torch.complex64, torch.complex128,
)  # fmt: skip

_POSTED = 8
_ALIGN = 16
_MARK = 0x65646765
_FIXED_WORDS = 5
_MOST_TENSORS = 1 << 10
_MOST_DIMENSIONS = 16
_MOST_LABEL_BYTES = 200
#: Messages of the largest size that may have arrived untaken before a peer's further ones are left on the wire.
_BACKLOG = 4
#: Below the word of readiness, above the tags of nothing else: parties use one.
_TAG = 1 << 29


@dataclass(slots=True)
class Header:
    """What a message is, and the tensors that its bytes fill."""

    request: int
    number: int
    label: str
    num_bytes: int
    payload: torch.Tensor
    tensors: list[torch.Tensor]
    filled: int = 0

    def fill(self, piece: torch.Tensor) -> bool:
        """Take the next bytes off a piece; say whether the message is whole."""
        part = piece[: len(self.payload) - self.filled]
        self.payload[self.filled : self.filled + len(part)] = part
        self.filled += len(part)
        return self.filled == len(self.payload)


def pack_message(request: int, number: int, tensors: Sequence[torch.Tensor], label: str) -> torch.Tensor:
    """Write a message: bytes, shape (n,).

    Raises
    ------
    ValueError
        More tensors, dimensions or letters in the label than a header holds, or a dtype that is not known.
    """
    name = label.encode()
    if len(tensors) > _MOST_TENSORS or len(name) > _MOST_LABEL_BYTES:
        raise ValueError(f"a message holds {_MOST_TENSORS} tensors and a label of {_MOST_LABEL_BYTES} bytes at most")
    words = [_MARK, request, number, len(name), len(tensors)]
    for tensor in tensors:
        if tensor.dtype not in DTYPES or tensor.dim() > _MOST_DIMENSIONS:
            raise ValueError(f"a tensor of {tensor.dtype} with {tensor.dim()} dimensions cannot be sent")
        words += [DTYPES.index(tensor.dtype), tensor.dim(), *tensor.shape]
    parts = [torch.tensor(words, dtype=torch.int64).view(torch.uint8)]
    parts += [torch.frombuffer(bytearray(name), dtype=torch.uint8)] if name else []
    head = sum(map(len, parts))
    parts += [tensor.detach().cpu().contiguous().view(-1).view(torch.uint8) for tensor in tensors]
    starts, at = [0, 8 * len(words)][: 2 if name else 1], _aligned(head)
    for part in parts[len(starts) :]:
        starts.append(at)
        at += _aligned(len(part))
    message = torch.empty(at, dtype=torch.uint8)
    for start, part in zip(starts, parts, strict=True):
        message[start : start + len(part)] = part
    return message


def read_header(piece: torch.Tensor, limit: int) -> tuple[Header, int]:
    """Read a header off a first piece, and take the memory that it announces.

    Returns
    -------
    Header, int
        And how many bytes of the piece it took.

    Raises
    ------
    ValueError
        It is none, or announces more than ``limit`` bytes.
    """
    words = piece[: len(piece) // 8 * 8].view(torch.int64)
    mark, request, number, label_bytes, num_tensors = (int(word) for word in words[:_FIXED_WORDS])
    if mark != _MARK or not (0 <= label_bytes <= _MOST_LABEL_BYTES and 0 <= num_tensors <= _MOST_TENSORS):
        raise ValueError("the bytes are no message")
    at, specs, sizes = _FIXED_WORDS, [], []
    for _ in range(num_tensors):
        if at + 2 > len(words):
            raise ValueError("the header is longer than a piece")
        kind, dimensions = int(words[at]), int(words[at + 1])
        if not (0 <= kind < len(DTYPES) and 0 <= dimensions <= _MOST_DIMENSIONS and at + 2 + dimensions <= len(words)):
            raise ValueError(f"a tensor of dtype {kind} with {dimensions} dimensions is announced")
        shape = tuple(int(size) for size in words[at + 2 : at + 2 + dimensions])
        if any(size < 0 for size in shape):
            raise ValueError(f"a tensor of shape {shape} is announced")
        specs.append((DTYPES[kind], shape))
        sizes.append(math.prod(shape) * DTYPES[kind].itemsize)
        at += 2 + dimensions
    num_bytes = sum(sizes)
    if num_bytes > limit:
        raise ValueError(f"a message of {num_bytes} bytes is announced, above the program's {limit}")
    label = bytes(piece[8 * at : 8 * at + label_bytes].tolist()).decode(errors="replace")
    payload = torch.empty(sum(map(_aligned, sizes)), dtype=torch.uint8)
    tensors, start = [], 0
    for (dtype, shape), size in zip(specs, sizes, strict=True):
        tensors.append(payload[start : start + size].view(dtype).view(shape))
        start += _aligned(size)
    return Header(request, number, label, num_bytes, payload, tensors), _aligned(8 * at + label_bytes)


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGN) * _ALIGN


@dataclass(slots=True)
class _Inbox:
    """Whole messages of one peer, in order, and why no more will come."""

    whole: deque[tuple[Header, float]] = field(default_factory=deque)
    held_bytes: int = 0
    failure: BaseException | None = None


class GlooLinks(Links):
    """Links of one worker.

    Parameters
    ----------
    peers
        ``None`` where a single worker plays all parts.
    pace
        Fraction of its speed to compute at, by resting after it; ``None``: all of it.
    """

    def __init__(
        self,
        program: PartyProgram,
        layout: Layout,
        rank: int,
        peers: Peers | None,
        state: State,
        pace: float | None = None,
    ) -> None:
        self.rank = rank
        self.spans = Spans()
        self._host, self._size = layout.hosts[rank], len(layout.hosts)
        self._limit, self._peers, self._state, self._pace = program.max_message_bytes, peers, state, pace
        self._inboxes = {host.rank: _Inbox() for host in layout.hosts}
        self._numbers = [0] * self._size
        self._request, self._is_over = 0, True
        self._news = threading.Condition()
        for other in self._inboxes if peers is not None else ():
            if other != rank:
                threading.Thread(target=self._listen, args=(other,), daemon=True).start()

    def begin(self, request: int) -> None:
        """Start a request: what is left of earlier ones is dropped, from now on whenever it comes."""
        with self._news:
            self._request, self._is_over, self.spans = request, False, Spans()
            self._numbers = [0] * self._size
            self._drop_old()

    def end(self) -> None:
        """End it: nobody takes its messages any more."""
        with self._news:
            self._is_over = True
            self._drop_old()

    def send(self, to: int, tensors: Sequence[torch.Tensor], label: str = "") -> None:
        """Hand a message over; see :meth:`edgeopt.programs.parties.Links.send`."""
        if to not in self._inboxes:
            raise ValueError(f"there is no rank {to}, ranks are 0 to {self._size - 1}")
        num_bytes = check_message(tensors, label, self._limit)
        number = self._numbers[to]
        self._numbers[to] += 1
        message = pack_message(self._request, number, tensors, label)
        if to == self.rank:
            header, start = read_header(message, self._limit)
            header.fill(message[start:])
            self._deliver(self.rank, header)
            return
        assert self._peers is not None
        self.spans.sent.append((to, number, label, num_bytes, time.monotonic()))
        for start in range(0, len(message), PIECE_BYTES):
            self._peers.hand_over(message[start : start + PIECE_BYTES], to, _TAG)
        self._state.moves += 1

    def receive(self, source: int) -> list[torch.Tensor]:
        """Wait for the next message of a party.

        Raises
        ------
        TransportError
            The party is gone, or sent what is no message or too large a one.
        """
        started_s = time.monotonic()
        inbox = self._inboxes[source]
        state = self._state
        state.now("receive", None, state.round, source)
        with self._news:
            while not inbox.whole:
                if inbox.failure is not None:
                    raise inbox.failure
                self._news.wait()
            return self._take(source, started_s)

    def poll(self, source: int) -> list[torch.Tensor] | None:
        """Return the next message of a party if it has arrived.

        Raises
        ------
        TransportError
            As in :meth:`receive`.
        """
        inbox = self._inboxes[source]
        with self._news:
            if inbox.whole:
                return self._take(source, time.monotonic())
            if inbox.failure is not None:
                raise inbox.failure
            return None

    def await_any(self, timeout_s: float) -> None:
        """Sleep until there is something to :meth:`poll`, a failure too."""
        with self._news:
            self._news.wait_for(lambda: any(i.whole or i.failure for i in self._inboxes.values()), timeout_s)

    @contextmanager
    def computing(self, stage: int, round_index: int = 0) -> Iterator[None]:
        """Time a piece of computing, and slow it down as the worker is told to."""
        if stage not in self._host.stages:
            raise ValueError(
                f"stage {stage} is not computed here, but {', '.join(map(str, self._host.stages)) or 'none'}"
            )
        self._state.now("compute", stage, round_index)
        started = computing_begins(self._host)
        yield
        if self._host.accelerator == "cuda":
            torch.cuda.synchronize()
        rest(started, self._pace)
        self.spans.computes.append((stage, round_index, started.clock_s, time.monotonic()))
        self._state.now("send", stage, round_index)

    def answered(self, query: int, arrived_s: float, answered_s: float) -> None:
        """Note when a request of a stream arrived and when it was answered."""
        self.spans.answers.append((query, arrived_s, answered_s))
        self._state.moves += 1

    def _take(self, source: int, started_s: float) -> list[torch.Tensor]:
        inbox = self._inboxes[source]
        header, arrived_s = inbox.whole.popleft()
        inbox.held_bytes -= len(header.payload)
        self._news.notify_all()
        if source != self.rank:
            self.spans.taken.append((source, header.number, started_s, time.monotonic(), arrived_s))
        self._state.peer = None
        self._state.moves += 1
        return header.tensors

    def _listen(self, source: int) -> None:
        """Take a peer's pieces off the wire and put messages together; runs in a thread of its own."""
        assert self._peers is not None
        header: Header | None = None
        try:
            buffers = [torch.empty(PIECE_BYTES, dtype=torch.uint8) for _ in range(_POSTED)]
            posted = deque((buffer, self._peers.expect(buffer, source, _TAG)) for buffer in buffers)
            while True:
                buffer, work = posted.popleft()
                self._peers.wait(work)
                start = 0
                if header is None:
                    header, start = read_header(buffer, self._limit)
                whole = header.fill(buffer[start:])
                if whole:
                    self._deliver(source, header)
                    header = None
                posted.append((buffer, self._peers.expect(buffer, source, _TAG)))
        except (TransportError, ValueError, RuntimeError) as error:  # said by whoever wants to hear from this peer
            named = error if isinstance(error, TransportError) else TransportError(f"from rank {source}: {error}")
            with self._news:
                self._inboxes[source].failure = named
                self._news.notify_all()

    def _deliver(self, source: int, header: Header) -> None:
        """Keep a message until it is taken; while too many wait, later ones are left on the wire."""
        inbox, arrived_s = self._inboxes[source], time.monotonic()
        with self._news:
            while not self._is_old(header) and source != self.rank and inbox.held_bytes > _BACKLOG * self._limit:
                self._news.wait()
            if not self._is_old(header):
                inbox.whole.append((header, arrived_s))
                inbox.held_bytes += len(header.payload)
                self._news.notify_all()

    def _is_old(self, header: Header) -> bool:
        return header.request < self._request or (header.request == self._request and self._is_over)

    def _drop_old(self) -> None:
        for inbox in self._inboxes.values():
            inbox.whole = deque(entry for entry in inbox.whole if not self._is_old(entry[0]))
            inbox.held_bytes = sum(len(header.payload) for header, _ in inbox.whole)
        self._news.notify_all()


def play_parties(
    program: PartyProgram,
    links: GlooLinks,
    peers: Peers | None,
    state: State,
    number: int,
    request: list[torch.Tensor] | None,
) -> Spans:
    """Play one request.

    Parameters
    ----------
    number
        Of the request in the run.
    request
        The input, on the source (rank 0); ``None`` elsewhere.

    Raises
    ------
    ValueError
        The program returned no result at the source.
    """
    program.begin()
    links.begin(number)
    state.now("wait")
    if peers is not None:
        peers.assemble()
    spans = links.spans
    if request is not None:
        spans.start = time.monotonic()
    result = program.play(links, request)
    if request is not None:
        if result is None:
            raise ValueError(f"{type(program).__name__} returned no result on rank 0")
        spans.result = [tensor.detach().cpu().contiguous() for tensor in result]
        spans.stop = time.monotonic()
    links.end()
    state.now("wait")
    if peers is not None:
        peers.flush()
    return spans
