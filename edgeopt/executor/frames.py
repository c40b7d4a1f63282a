"""Messages on a stream of bytes: a length of four bytes, most significant first, then so many bytes of JSON.

The length is judged before anything is allocated for it, and a stream that breaks the rule is not read any further.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

__all__ = ["GREETING_BYTES", "MAX_BYTES", "FrameError", "Frames", "frame", "read_frame"]

#: Largest frame of a run: a job with the hand-offs of a request, or one hand-off.
MAX_BYTES = 64 << 20
#: Largest frame of somebody who has not proven the token.
GREETING_BYTES = 4096

_LENGTH = struct.Struct(">I")


class FrameError(ValueError):
    """The other side sends something that is no frame, or one that is too large."""


def frame(payload: bytes, limit: int = MAX_BYTES) -> bytes:
    """Write one frame.

    Raises
    ------
    FrameError
        It would be longer than ``limit`` bytes; the other side would refuse it.
    """
    _check(len(payload), limit)
    return _LENGTH.pack(len(payload)) + payload


def read_frame(read: Callable[[int], bytes], limit: int = MAX_BYTES) -> bytes | None:
    """Read one frame with ``read(n)``, which waits and returns at most n bytes, none at the end.

    Returns
    -------
    bytes or None
        ``None`` when the stream ends before a frame begins.

    Raises
    ------
    FrameError
        Too large, or the stream ends within it.
    """
    head = _exactly(read, _LENGTH.size)
    if not head:
        return None
    if len(head) < _LENGTH.size:
        raise FrameError("the stream ends within the length of a frame")
    (size,) = _LENGTH.unpack(head)
    _check(size, limit)
    payload = _exactly(read, size)
    if len(payload) < size:
        raise FrameError(f"the stream ends after {len(payload)} of {size} bytes of a frame")
    return payload


class Frames:
    """Cuts what arrives in pieces into frames.

    Parameters
    ----------
    limit
        Largest frame, in bytes.
    """

    def __init__(self, limit: int = MAX_BYTES) -> None:
        self._limit = limit
        self._held = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Return the frames that are whole now.

        Raises
        ------
        FrameError
            A frame is announced that is too large. Nothing of it is kept, and nothing after it can be read.
        """
        self._held += data
        whole, start = [], 0
        while len(self._held) - start >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._held, start)
            _check(size, self._limit)
            stop = start + _LENGTH.size + size
            if len(self._held) < stop:
                break
            whole.append(bytes(self._held[start + _LENGTH.size : stop]))
            start = stop
        del self._held[:start]
        return whole


def _check(size: int, limit: int) -> None:
    if size > limit:
        raise FrameError(f"a frame of {size} bytes is larger than the {limit} bytes allowed")


def _exactly(read: Callable[[int], bytes], count: int) -> bytes:
    parts: list[bytes] = []
    while count:
        part = read(min(count, 1 << 16))
        if not part:
            break
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
