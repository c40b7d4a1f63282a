"""How two machines agree on one measurement: one listens on an address, the other connects; both know a token.

Lines of JSON over one TCP connection. Each side proves the token by a keyed hash of the other's random number, so the
token itself is never sent. Whoever cannot prove it is turned away, and the listener waits on.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import secrets
import socket
import time
from typing import Any

from edgeopt.errors import ExecutionError, Finding, InputError

__all__ = ["DEFAULT_PORT", "Meeting", "listen", "parse_address"]

DEFAULT_PORT = 29611
_MAX_LINE = 64 * 2**20
_PROTOCOL = "edgeopt-link/1"


def parse_address(text: str, field: str) -> tuple[str, int]:
    """Split ``HOST[:PORT]``, ``[IPv6]:PORT`` or an IPv6 address.

    Raises
    ------
    InputError
        Empty, or the port is not a number from 0 to 65535.
    """
    host, colon, port = text.rpartition(":")
    if not colon or (host.count(":") and not host.startswith("[")):
        host, port = text, str(DEFAULT_PORT)
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise InputError(Finding(field, f"'{text}' is not an address", f"write HOST or HOST:PORT ({DEFAULT_PORT})"))
    return host, int(port)


def listen(host: str, port: int) -> socket.socket:
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
            raise InputError(Finding("--listen", f"'{host}' would listen on every interface", mend))
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(8)
    except OSError as error:
        mend = "give an address of this machine and a free port"
        raise InputError(Finding("--listen", f"cannot listen on '{host}:{port}': {error.strerror}", mend)) from error
    return listener


class Meeting:
    """One agreed connection: JSON documents go both ways until ``deadline`` (monotonic seconds)."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._connection, self._deadline = connection, deadline
        self._stream = connection.makefile("rwb")

    @property
    def own_address(self) -> str:
        """Address of this machine on the way to the other."""
        return str(self._connection.getsockname()[0])

    @property
    def peer_address(self) -> str:
        """Address of the other machine."""
        return str(self._connection.getpeername()[0])

    @classmethod
    def connect(cls, host: str, port: int, token: str, request: dict[str, Any], deadline: float) -> Meeting:
        """Reach the machine that listens, prove the token, and hand over the request.

        Raises
        ------
        ExecutionError
            Nobody listens there, or the tokens differ.
        """
        try:
            connection = socket.create_connection((host, port), timeout=max(0.1, deadline - time.monotonic()))
        except OSError as error:
            reason = error.strerror or error
            mend = f"start `edgeopt profile link --listen {host}:{port}` there first"
            raise ExecutionError(f"cannot reach {host}:{port}: {reason}; {mend}") from error
        meeting = cls(connection, deadline)
        nonce = secrets.token_hex(16)
        meeting.send({"protocol": _PROTOCOL, "nonce": nonce})
        theirs = meeting.receive()
        meeting.send({"proof": _proof(token, str(theirs.get("nonce")), "connect"), "request": request})
        answer = meeting.receive()
        if not hmac.compare_digest(str(answer.get("proof")), _proof(token, nonce, "listen")):
            meeting.close()
            reason = answer.get("refused", "it does not know the token")
            raise ExecutionError(f"{host}:{port} refused: {reason}; use the command that --listen printed there")
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
            # A stranger who says nothing may not keep the machine that is expected waiting.
            meeting = cls(connection, min(deadline, time.monotonic() + 5.0))
            request = meeting._admit(token)
            if request is not None:
                meeting._deadline = deadline
                return meeting, request
            meeting.close()

    def _admit(self, token: str) -> dict[str, Any] | None:
        nonce = secrets.token_hex(16)
        try:
            theirs = self.receive()
            self.send({"nonce": nonce})
            asked = self.receive()
            known = hmac.compare_digest(str(asked.get("proof")), _proof(token, nonce, "connect"))
            if not known or theirs.get("protocol") != _PROTOCOL or not isinstance(asked.get("request"), dict):
                self.send({"refused": "the token is another" if not known else f"this side speaks {_PROTOCOL}"})
                return None
            self.send({"proof": _proof(token, str(theirs.get("nonce")), "listen")})
        except ExecutionError:
            return None
        return dict(asked["request"])

    def send(self, document: dict[str, Any]) -> None:
        """Send one document."""
        try:
            self._stream.write(json.dumps(document).encode() + b"\n")
            self._stream.flush()
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
            self._connection.settimeout(max(0.1, self._deadline - time.monotonic()))
            line = self._stream.readline(_MAX_LINE)
            document = json.loads(line) if line else None
        except (OSError, ValueError) as error:
            raise ExecutionError(f"the other machine gave no answer: {error}") from error
        if not isinstance(document, dict):
            raise ExecutionError("the other machine closed the connection")
        return document

    def close(self) -> None:
        """End the connection."""
        self._connection.close()


def _proof(token: str, nonce: str, side: str) -> str:
    return hmac.new(token.encode(), f"{side}:{nonce}".encode(), hashlib.sha256).hexdigest()
