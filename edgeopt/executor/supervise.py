"""Watch the processes of a run: pass on what they say, notice what they cannot say, leave none behind.

A worker that dies, is killed, runs out of memory or stops answering ends the run with an error that names its
stage and device. Whatever happens, leaving the ``with`` block kills the process group of every worker.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from edgeopt.errors import EdgeoptError, ExecutionError, InputError
from edgeopt.executor.endpoint import GONE, Endpoint
from edgeopt.executor.frames import FrameError, Frames, frame
from edgeopt.executor.layout import Host
from edgeopt.executor.memory import oom_kills
from edgeopt.executor.messages import Beat, Checked, Done, Failed, parse_event

__all__ = ["MIN_STALL_S", "Crew", "Member"]

#: Shortest silence that may count as a stall: workers speak twice a second.
MIN_STALL_S = 1.5

_SETTLE_S = 1.0
_SILENT_S = 5.0


class Member:
    """One watched worker: what it said last, how it ended. ``host`` is ``None`` for the reference run."""

    def __init__(self, host: Host | None, endpoint: Endpoint) -> None:
        self.host, self.endpoint = host, endpoint
        self.outgoing = b""
        self.frames = Frames()
        self.stderr: deque[str] = deque(maxlen=12)
        self.beat: Beat | None = None
        self.heard_s = time.monotonic()
        self.moved_s = time.monotonic()
        self.ended_s: float | None = None
        self.failed: Failed | None = None
        self.seen: set[type] = set()

    @property
    def ended(self) -> bool:
        """Whether the process is gone."""
        return self.endpoint.poll() is not None


class Crew(contextlib.AbstractContextManager["Crew"]):
    """The processes of one run.

    Parameters
    ----------
    timeout_s
        Seconds from ``started_s`` within which the whole run must be over.
    on_event
        Called with (host, event) for everything a worker says besides its signs of life.
    started_s
        When the run began, on the monotonic clock.
    stall_s
        Seconds of silence, or of standing still, that end the run; counted once everybody is ready.
    """

    def __init__(
        self,
        timeout_s: float,
        on_event: Callable[[Host | None, Any], None],
        started_s: float,
        stall_s: float | None = None,
    ) -> None:
        self.timeout_s, self.stall_s = timeout_s, stall_s
        self.deadline = started_s + timeout_s
        self._on_event = on_event
        self._members: list[Member] = []
        self._selector = selectors.DefaultSelector()
        self._oom_kills = oom_kills()

    def add(self, host: Host | None, endpoint: Endpoint, job: bytes) -> None:
        """Watch a worker and hand it its job.

        Raises
        ------
        ExecutionError
            The job is larger than a worker accepts.
        """
        member = Member(host, endpoint)
        self._members.append(member)
        for stream, mask in ((endpoint.events, 1), (endpoint.words, 2)):
            if stream is not None:
                self._selector.register(stream, selectors.EVENT_READ, (member, mask))
        self._send(member, job)

    def send(self, message: bytes) -> None:
        """Say the same to everybody."""
        for member in self._members:
            self._send(member, message)

    def endpoints(self) -> list[tuple[Host | None, Endpoint]]:
        """Hosts with their workers."""
        return [(member.host, member.endpoint) for member in self._members]

    def wait_for(self, event: type) -> None:
        """Return when every process has said ``event``.

        Raises
        ------
        ExecutionError
            A process ended or failed before it did, or the time is over.
        """
        while not all(event in member.seen for member in self._members):
            self._pump(0.05)
            if suspects := self._suspects():
                raise self._blame(suspects)
            if time.monotonic() > self.deadline:
                raise self._late()
            if event is Done and self.stall_s is not None and (stalled := self._stalled(self.stall_s)):
                raise stalled

    def __exit__(self, *exception: object) -> None:
        """End every process with its group, kindly if it is done and by force if it is not, and reap it."""
        patience = time.monotonic() + 5.0
        while any(Done in m.seen and not m.endpoint.settled for m in self._members) and time.monotonic() < patience:
            if exception[0] is not None:
                break
            time.sleep(0.005)
        for member in self._members:
            member.endpoint.kill()
        for member in self._members:
            member.endpoint.close()
        self._selector.close()

    def _send(self, member: Member, message: bytes) -> None:
        # A worker that does not read must not hold up the driver: what does not fit in the pipe waits in _pump.
        idle = not member.outgoing
        try:
            member.outgoing += frame(message)
        except FrameError as error:
            raise self._error(member, f"its job cannot be sent: {error}") from error
        if idle:
            self._selector.register(member.endpoint.jobs, selectors.EVENT_WRITE, (member, 0))

    def _pump(self, timeout_s: float) -> None:
        for key, _ in self._selector.select(timeout_s):
            member, stream = key.data
            if stream == 0:
                self._write(member)
                continue
            try:
                data = os.read(key.fd, 1 << 16)
            except BlockingIOError:
                continue
            except OSError:  # a connection that was reset has ended
                data = b""
            if not data:
                self._selector.unregister(key.fileobj)
            elif stream == 1:
                self._read(member, data)
            else:
                member.stderr.extend(line for line in data.decode(errors="replace").splitlines() if line.strip())

    def _write(self, member: Member) -> None:
        pipe = member.endpoint.jobs
        try:
            member.outgoing = member.outgoing[os.write(pipe.fileno(), member.outgoing) :]
        except BlockingIOError:
            return
        except OSError:  # it ended; its exit tells the story
            member.outgoing = b""
        if not member.outgoing:
            self._selector.unregister(pipe)

    def _read(self, member: Member, data: bytes) -> None:
        try:
            messages = member.frames.feed(data)
        except FrameError as error:
            raise self._error(member, f"sent what cannot be read: {error}") from error
        for message in messages:
            try:
                event = parse_event(message)
            except ValueError as error:
                raise self._error(member, f"said what no worker says: {message[:200]!r}") from error
            member.heard_s = time.monotonic()
            if isinstance(event, Beat):
                if member.beat is None or _at(event) != _at(member.beat):
                    member.moved_s = member.heard_s
                member.beat = event
                continue
            member.moved_s = member.heard_s
            if isinstance(event, Failed):
                member.failed = event
            member.seen.add(type(event))
            self._on_event(member.host, event)

    def _blame(self, suspects: Sequence[Member]) -> EdgeoptError:
        """Name the cause: workers that only lost a peer point at another, whose end may be a moment away."""
        settled = time.monotonic() + _SETTLE_S
        while time.monotonic() < settled:
            self._pump(0.02)
            suspects = self._suspects()
            decisive = [m for m in suspects if _gravity(m) < 3]
            if decisive and (decisive[0].failed or not self._may_speak(decisive[0])):
                break
        culprit = min(suspects, key=_gravity)
        if culprit.failed and culprit.failed.kind == "input":
            return InputError(culprit.failed.message)
        return self._error(culprit, self._story(culprit))

    def _may_speak(self, member: Member) -> bool:
        return member.endpoint.words is not None and member.endpoint.words in self._selector.get_map()

    def _suspects(self) -> list[Member]:
        """Members that failed or ended too early; one that has just ended may have said "done" unread."""
        now = time.monotonic()
        suspects = []
        for member in self._members:
            if member.ended and member.ended_s is None:
                member.ended_s = now
            read = member.endpoint.events not in self._selector.get_map()
            early = (
                member.ended_s is not None and Done not in member.seen and (read or now > member.ended_s + _SETTLE_S)
            )
            if member.failed or early:
                suspects.append(member)
        return suspects

    def _story(self, member: Member) -> str:
        code = member.endpoint.poll()
        if code is not None and code < 0:
            text = f"its process was killed by {_signal_name(-code)}"
            if code == -signal.SIGKILL:
                kills = oom_kills()
                grew = kills is not None and self._oom_kills is not None and kills > self._oom_kills
                text += ", by the kernel since memory ran out" if grew else ""
                text += f"; it held {_size(member.beat.memory_bytes)}" if member.beat else ""
            return text + _doing(member)
        if member.failed:
            prefix = {"memory": "out of memory: ", "peer": "lost the connection to another worker: "}
            text = prefix.get(member.failed.kind, "") + member.failed.message
            if member.failed.kind == "memory":
                held = f"; it held {_size(member.beat.memory_bytes)}" if member.beat else ""
                return text + held + _doing(member)
            return text + _doing(member)
        how = "the connection to it closed" if code == GONE else f"its process ended early with exit code {code}"
        return how + _doing(member) + _last_words(member)

    def _late(self) -> ExecutionError:
        """Name who holds everybody up when time is over."""
        waiting = [m for m in self._members if not {Done, Checked} & m.seen]
        now = time.monotonic()
        stopped = [m for m in waiting if m.endpoint.pid is not None and _is_stopped(m.endpoint.pid)]
        silent = [m for m in waiting if now - m.heard_s > min(_SILENT_S, self.timeout_s / 2)]
        busy = [m for m in waiting if m.beat and m.beat.doing not in ("receive", "connect", "wait")]
        limit = f"the run was not over within {self.timeout_s:g} s"
        if stopped:
            return self._error(stopped[0], f"its process is stopped (SIGSTOP); {limit}" + _doing(stopped[0]))
        if silent:
            quiet_s = now - silent[0].heard_s
            return self._error(silent[0], f"no sign of life for {quiet_s:.1f} s; {limit}" + _doing(silent[0]))
        culprit = (busy or waiting)[0]
        return self._error(culprit, f"{limit}; if it is merely long, allow more time" + _doing(culprit))

    def _stalled(self, limit_s: float) -> ExecutionError | None:
        """Name who is lost: a worker that says nothing, one that computes for too long, one that nobody can reach."""
        now = time.monotonic()
        working = [m for m in self._members if Done not in m.seen]
        silent = [m for m in working if now - m.heard_s > limit_s]
        if silent:
            stopped = silent[0].endpoint.pid is not None and _is_stopped(silent[0].endpoint.pid)
            why = "its process is stopped (SIGSTOP), " if stopped else ""
            return self._error(silent[0], f"{why}no sign of life for {limit_s:g} s" + _doing(silent[0]))
        if not working or any(now - m.moved_s <= limit_s for m in working):
            return None
        computing = [m for m in working if m.beat and m.beat.doing == "compute"]
        if computing:
            return self._error(computing[0], f"no progress for {limit_s:g} s" + _doing(computing[0]))
        waiting = [(m.beat.round or 0, m.beat.stage, m) for m in working if m.beat and m.beat.stage is not None]
        sender, receiver = _party_gap(working)
        if receiver is None and not waiting:
            return self._error(working[0], f"no progress for {limit_s:g} s" + _doing(working[0]))
        if receiver is None:
            _, stage, receiver = min(waiting, key=lambda entry: entry[:2])
            sender = self._host_of(stage - 1 if stage else None)
        lost = receiver if sender is None or sender.host is None or sender.host.rank == 0 else sender
        names = [m.host.device if m and m.host else "?" for m in (sender, receiver)]
        return self._error(lost, f"nothing has come from '{names[0]}' to '{names[1]}' for {limit_s:g} s")

    def _host_of(self, stage: int | None) -> Member | None:
        """Worker of a stage; of the last one for ``None``."""
        hosts = [(max(m.host.stages), m) for m in self._members if m.host and m.host.stages]
        if stage is None:
            return max(hosts, key=lambda entry: entry[0])[1] if hosts else None
        return next((m for _, m in hosts if m.host and stage in m.host.stages), None)

    def _error(self, member: Member, reason: str) -> ExecutionError:
        host = member.host
        if host is None:
            return ExecutionError(f"reference run in a single process: {reason}. Without the check it can be skipped")
        stage = member.failed.stage if member.failed else None
        if stage is None and member.beat:
            stage = member.beat.stage
        if stage is None and host.stages:
            stage = host.stages[0]
        several = f" (the device is {host.role})" if len(host.stages) != 1 else ""
        return ExecutionError(reason + several, stage=stage, device=host.device)


def _gravity(member: Member) -> int:
    """Order causes: a signal, own failure, an early exit, a lost peer."""
    code = member.endpoint.poll()
    if code is not None and code < 0:
        return 0
    if member.failed:
        return 3 if member.failed.kind == "peer" else 1
    return 2


def _party_gap(members: Sequence[Member]) -> tuple[Member | None, Member | None]:
    """Sender and receiver of the message that parties wait for in the end; both ``None`` where none waits for a rank.

    Who waits for somebody that waits is not the cause: the search goes on to the one that waits for nobody, or round a
    circle of waiting parties.
    """
    by_rank = {member.host.rank: member for member in members if member.host}
    waits = {rank: m.beat.peer for rank, m in by_rank.items() if m.beat and m.beat.peer is not None}
    receiver, rank, seen = None, min(waits, default=None), set()
    while rank in waits and rank not in seen:
        seen.add(rank)
        receiver, rank = rank, waits[rank]
    if receiver is None or rank is None:
        return None, None
    return by_rank.get(rank), by_rank[receiver]


def _at(beat: Beat) -> tuple[object, ...]:
    """Where a worker is, as far as progress goes."""
    return beat.doing, beat.stage, beat.round, beat.request, beat.moves


def _doing(member: Member) -> str:
    beat = member.beat
    if beat is None:
        return " (while starting)"
    at = "" if beat.request is None else f", request {beat.request}"
    at += "" if beat.round is None else f", round {beat.round}"
    return f" (last seen: {beat.doing}{at})"


def _last_words(member: Member) -> str:
    lines = list(member.stderr) or [line for line in member.endpoint.last_words().splitlines() if line.strip()]
    return "; last words: " + " | ".join(lines[-4:]) if lines else ""


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _is_stopped(pid: int) -> bool:
    import psutil

    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).status() == psutil.STATUS_STOPPED
    return False


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"
