"""How two machines find each other: one listens on an address, the other connects; both know a token.

Frames of JSON over one TCP connection. Each side proves the token by a keyed hash of the other's random number, so the
token itself is never sent. Whoever cannot prove it is turned away, and the listener waits on; whoever has not proven it
yet may send small frames only, and must be quick. What follows is neither encrypted nor signed.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import ipaddress
import json
import queue
import secrets
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from edgeopt.errors import ExecutionError, Finding, InputError
from edgeopt.executor.frames import GREETING_BYTES, MAX_BYTES, frame, read_frame

__all__ = ["DEFAULT_PORT", "Gate", "Meeting", "listen", "parse_address"]

DEFAULT_PORT = 29611
_PROTOCOL = "edgeopt-link/1"
_STRANGER_S = 5.0
_STRANGERS = 64


def parse_address(text: str, field: str, default_port: int = DEFAULT_PORT) -> tuple[str, int]:
    """Split ``HOST[:PORT]``, ``[IPv6]:PORT`` or an IPv6 address.

    Raises
    ------
    InputError
        Empty, or the port is not a number from 0 to 65535.
    """
    host, colon, port = text.rpartition(":")
    if not colon or (host.count(":") and not host.startswith("[")):
        host, port = text, str(default_port)
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise InputError(Finding(field, f"'{text}' is not an address", f"write HOST or HOST:PORT ({DEFAULT_PORT})"))
    return host, int(port)


def listen(host: str, port: int, field: str = "--listen") -> socket.socket:
    """Listen on one address and no other.

    Raises
    ------
    InputError
        The address stands for every interface, or is none of this machine.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        if ipaddress.ip_address(address[0].partition("%")[0]).is_unspecified:
            mend = "name the address by which the other machine reaches this one"
            raise InputError(Finding(field, f"'{host}' would listen on every interface", mend))
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(128)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        mend = "give an address of this machine and a free port"
        raise InputError(Finding(field, f"cannot listen on '{host}:{port}': {error.strerror}", mend)) from error
    return listener


class Meeting:
    """One agreed connection: JSON documents go both ways until ``deadline`` (monotonic seconds)."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._connection, self._deadline = connection, deadline
        self._limit = GREETING_BYTES

    @property
    def own_address(self) -> str:
        """Address of this machine on the way to the other."""
        return str(self._connection.getsockname()[0])

    @property
    def peer_address(self) -> str:
        """Address of the other machine."""
        return str(self._connection.getpeername()[0])

    @classmethod
    def connect(
        cls,
        host: str,
        port: int,
        token: str,
        request: dict[str, Any],
        deadline: float,
        *,
        protocol: str = _PROTOCOL,
        waiting: str | None = None,
        printed_by: str = "--listen",
    ) -> Meeting:
        """Reach the machine that listens, prove the token, and hand over the request.

        Parameters
        ----------
        protocol
            What this side speaks; the other refuses anything else.
        waiting, printed_by
            For messages: the command that should be waiting there, and what printed the command for this side.

        Raises
        ------
        ExecutionError
            Nobody listens there, or the tokens differ.
        """
        try:
            connection = socket.create_connection((host, port), timeout=max(0.1, deadline - time.monotonic()))
        except OSError as error:
            reason = error.strerror or error
            mend = f"start `{waiting or f'edgeopt profile link --listen {host}:{port}'}` there first"
            raise ExecutionError(f"cannot reach {host}:{port}: {reason}; {mend}") from error
        meeting = cls(connection, deadline)
        try:
            nonce = secrets.token_hex(16)
            meeting.send({"protocol": protocol, "nonce": nonce})
            theirs = meeting.receive()
            meeting.send({"proof": _proof(token, theirs.get("nonce"), "connect"), "request": request})
            answer = meeting.receive()
            if not _equal(answer.get("proof"), _proof(token, nonce, "listen")):
                reason = answer.get("refused", "it does not know the token")
                raise ExecutionError(
                    f"{host}:{port} refused: {reason}; use the command that {printed_by} printed there"
                )
        except ExecutionError:
            meeting.close()
            raise
        meeting._limit = MAX_BYTES
        return meeting

    @classmethod
    def accept(cls, listener: socket.socket, token: str, deadline: float) -> tuple[Meeting, dict[str, Any]]:
        """Wait for the machine that knows the token; return what it asks for.

        Raises
        ------
        ExecutionError
            It does not come before the deadline.
        """
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise ExecutionError("nobody with the token connected in time; allow more with --timeout")
            listener.settimeout(left)
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            meeting = cls.admit(connection, token, deadline)
            if meeting is not None:
                return meeting

    @classmethod
    def admit(
        cls, connection: socket.socket, token: str, deadline: float, protocol: str = _PROTOCOL
    ) -> tuple[Meeting, dict[str, Any]] | None:
        """Let the other side prove the token; ``None``, and the connection is closed, if it does not at once."""
        # A stranger who says nothing may not keep the machine that is expected waiting.
        meeting = cls(connection, min(deadline, time.monotonic() + _STRANGER_S))
        request = meeting._admit(token, protocol)
        if request is None:
            meeting.close()
            return None
        meeting._deadline, meeting._limit = deadline, MAX_BYTES
        return meeting, request

    def _admit(self, token: str, protocol: str) -> dict[str, Any] | None:
        nonce = secrets.token_hex(16)
        try:
            theirs = self.receive()
            self.send({"nonce": nonce})
            asked = self.receive()
            known = _equal(asked.get("proof"), _proof(token, nonce, "connect"))
            if not known or theirs.get("protocol") != protocol or not isinstance(asked.get("request"), dict):
                self.send({"refused": "the token is another" if not known else f"this side speaks {protocol}"})
                return None
            self.send({"proof": _proof(token, theirs.get("nonce"), "listen")})
        except ExecutionError:
            return None
        return dict(asked["request"])

    def send(self, document: dict[str, Any]) -> None:
        """Send one document."""
        try:
            self._connection.settimeout(max(0.1, self._deadline - time.monotonic()))
            self._connection.sendall(frame(json.dumps(document).encode(), MAX_BYTES))
        except OSError as error:
            raise ExecutionError(f"the other machine is gone: {error.strerror or error}") from error

    def receive(self) -> dict[str, Any]:
        """Wait for one document.

        Raises
        ------
        ExecutionError
            The other side is gone, silent, or speaks something else.
        """
        try:
            payload = read_frame(self._read, self._limit)
            document = json.loads(payload) if payload is not None else None
        except (OSError, ValueError, RecursionError) as error:
            raise ExecutionError(f"the other machine gave no answer: {error}") from error
        if payload is None:
            raise ExecutionError("the other machine closed the connection")
        if not isinstance(document, dict):
            raise ExecutionError("the other machine answered with something else than a document")
        return document

    def detach(self) -> socket.socket:
        """Give the connection away, blocking; whoever takes it reads and writes frames of its own."""
        self._connection.settimeout(None)
        return self._connection

    def close(self) -> None:
        """End the connection."""
        self._connection.close()

    def _read(self, count: int) -> bytes:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("time is over")
        self._connection.settimeout(left)
        return self._connection.recv(count)


class Gate(contextlib.AbstractContextManager["Gate"]):
    """Admits everybody who proves the token, each in its own time, until it is left.

    Parameters
    ----------
    turned_away
        Called, from a thread, with the address of whoever did not prove it.

    Attributes
    ----------
    admitted
        Meetings with what each asks for.
    """

    def __init__(
        self, listener: socket.socket, token: str, protocol: str, deadline: float, turned_away: Callable[[str], None]
    ) -> None:
        self.admitted: queue.SimpleQueue[tuple[Meeting, dict[str, Any]]] = queue.SimpleQueue()
        self._listener, self._token, self._protocol = listener, token, protocol
        self._deadline, self._turned_away = deadline, turned_away
        self._room = threading.BoundedSemaphore(_STRANGERS)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Gate:
        self._listener.settimeout(0.1)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()
        self._drain()

    def _accept(self) -> None:
        while not self._over.is_set():
            try:
                connection, address = self._listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            if not self._room.acquire(blocking=False):
                connection.close()  # a flood of strangers costs no more than so many threads
                continue
            threading.Thread(target=self._admit, args=(connection, str(address[0])), daemon=True).start()

    def _admit(self, connection: socket.socket, address: str) -> None:
        try:
            met = Meeting.admit(connection, self._token, self._deadline, self._protocol)
            if met is None:
                self._turned_away(address)
            else:
                self.admitted.put(met)
                if self._over.is_set():
                    self._drain()
        finally:
            self._room.release()

    def _drain(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self.admitted.get_nowait()[0].close()


def _proof(token: str, nonce: Any, side: str) -> str:
    words = f"{side}:{nonce}".encode(errors="backslashreplace")  # a stranger's text need not be encodable
    return hmac.new(token.encode(), words, hashlib.sha256).hexdigest()


def _equal(given: Any, wanted: str) -> bool:
    return hmac.compare_digest(str(given).encode(errors="backslashreplace"), wanted.encode())
