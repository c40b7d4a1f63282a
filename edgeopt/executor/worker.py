"""A worker process: ``python -m edgeopt.executor.worker``, one job in, events out; see :mod:`edgeopt.executor.channel`.

It hosts the stages of one device, or runs the reference: the whole model in one fresh process, compared with the result
of the distributed run. It ends with the driver, however that ends.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import edgeopt
from edgeopt.errors import EdgeoptError, Finding, InputError
from edgeopt.executor import memory
from edgeopt.executor.backends import Seat, agree_on_seats, gpu_indices, own_seat, tensor_backend
from edgeopt.executor.channel import Channel, open_channel
from edgeopt.executor.cores import bind_computing, on_cores
from edgeopt.executor.hardware import machine_id
from edgeopt.executor.layout import Boundary, Host, Layout
from edgeopt.executor.messages import Beat, Checked, Done, Failed, Go, Handoff, Job, Ready, ResultPart, Trace
from edgeopt.executor.pacing import exact_sleeps, warm_up
from edgeopt.executor.packing import freeze, pack, thaw, unpack
from edgeopt.executor.state import State
from edgeopt.plan import Plan

if TYPE_CHECKING:
    import torch

    from edgeopt.executor.serve import Spans
    from edgeopt.programs.base import Program
    from edgeopt.programs.parties import PartyProgram

__all__ = ["main"]

_BEAT_S = 0.5
_PART_BYTES = 3 << 20
_PR_SET_PDEATHSIG = 1


def main(
    build: Callable[[Plan, Sequence[int]], Program | PartyProgram] | None = None,
    reference: Callable[[Plan, int], list[torch.Tensor]] | None = None,
    compare: Callable[..., Any] | None = None,
) -> None:
    """Read a job and do it. The functions are those of :mod:`edgeopt.programs`; tests give their own."""
    channel = open_channel(sys.argv[1:])
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    memory.offer_to_oom_killer()
    state = State()
    with _telling_failures(channel, state):
        job = _read_job(channel)
        _beat(channel, state)
        if build is None or reference is None or compare is None:
            from edgeopt import programs

            build, reference, compare = programs.build, programs.reference, programs.compare
        if job.role == "reference":
            _run_reference(job, channel, state, reference, compare)
        else:
            _run_worker(job, channel, state, build)
    channel.send(Done(peak_memory_bytes=memory.peak_bytes()))
    sys.stderr.flush()
    os._exit(0)  # everything is sent; tearing down gloo in some order helps nobody


def _read_job(channel: Channel) -> Job:
    """Wait for the job, and end if the driver is another process than it says: it has ended since.

    Raises
    ------
    InputError
        The job is of another version.
    """
    try:
        job = Job.model_validate_json(channel.receive())
    except ValueError as error:
        first = (getattr(error, "errors", list)() or [{"loc": (), "msg": str(error)}])[0]
        mend = f"install edgeopt {edgeopt.__version__} where it comes from, or its version here"
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(Finding(f"job.{where}", f"edgeopt {edgeopt.__version__}: {first['msg']}", mend)) from error
    if job.driver_pid is not None and os.getppid() != job.driver_pid:
        os._exit(1)
    if channel.address is not None:
        listen_fd = channel.listener.fileno() if channel.listener is not None else None
        job = job.model_copy(update={"own_address": channel.address, "listen_fd": listen_fd})
    return job


def _run_worker(
    job: Job, channel: Channel, state: State, build: Callable[[Plan, Sequence[int]], Program | PartyProgram]
) -> None:
    import torch

    from edgeopt.executor import transport as wire
    from edgeopt.executor.serve import digest
    from edgeopt.programs.parties import PartyProgram

    carrying = bind_computing(job.compute_cores)
    layout = Layout.of(job.plan)
    _prepare(job, layout.hosts[job.rank])
    alone = len(layout.hosts) == 1
    started_s = time.monotonic()
    # The store is opened first so that no peer waits for rank 0 to build its part.
    with on_cores(carrying):
        store = None if alone else wire.open_store(job, len(layout.hosts))
    stages = layout.hosts[job.rank].stages
    seats = _seats(job, layout, store)
    state.now("build", stages[0] if stages else None)
    program = build(job.plan, stages)
    build_s = time.monotonic() - started_s
    transport: wire.Peers | None = None
    offset_s, error_s, carrier = 0.0, 0.0, "gloo"
    if store is not None:
        state.now("connect")
        with on_cores(carrying):
            group = wire.join(job, store, len(layout.hosts))
        if isinstance(program, PartyProgram):
            transport = wire.Peers(layout, group)
        elif (carrier := tensor_backend(seats, job.in_flight)) == "nccl":
            from edgeopt.executor.nccl import interface_of, join_gpus

            interface, gpu = interface_of(job), gpu_indices(seats)[job.rank]
            assert interface is not None
            assert gpu is not None
            transport = join_gpus(job, store, program, layout, group, interface, gpu)
        else:
            transport = wire.Transport(program, layout, group)
        offset_s, error_s = wire.agree_on_time(group)
    clock = {"machine": machine_id(), "clock_offset_s": offset_s, "clock_error_s": error_s}
    channel.send(Ready.model_validate({"build_s": build_s, "carrier": carrier, **clock}))
    state.now("wait")
    Go.model_validate_json(channel.receive())
    threading.Thread(target=channel.wait_for_the_end, daemon=True).start()  # not every system tells of a parent's death
    gc.freeze()  # libraries and model are never garbage: looking through them takes a tenth of a second
    with torch.inference_mode():
        handed = [unpack(handoff.data) for handoff in job.resume]
        inputs = None
        if job.rank == 0:
            resumes = handed and not isinstance(program, PartyProgram)
            inputs = program.resume(job.seed, handed) if resumes else program.request(job.seed)
        keep = _keeper(channel, state) if job.keep_handoffs else None
        if isinstance(program, PartyProgram):
            served = _parties(job, program, layout, transport, state, inputs)
        elif job.in_flight > 1:
            served = _many(job, program, layout, transport, state, inputs)
        else:
            served = _one_by_one(job, program, layout, transport, state, inputs, keep)
        for number, spans in enumerate(served):
            if spans.result is not None and handed and not isinstance(program, PartyProgram):
                spans.result = program.join(handed, spans.result)
            result = digest(spans.result) if spans.result is not None else None
            measures = {}
            if spans.result is not None and isinstance(program, PartyProgram):
                measures = program.measures(spans.result)
            channel.send(_trace(number, number < job.warmup, spans, result, measures))
            if spans.result is not None and number == job.warmup + job.repeat - 1:
                _hand_in(job, channel, spans.result)
    if transport is not None:
        state.now("wait")
        transport.barrier()  # nobody leaves while another still reads from it


def _seats(job: Job, layout: Layout, store: Any) -> list[Seat]:
    """Hear who has which GPU, and take this worker's own; plans without one have nothing to agree on."""
    if all(host.accelerator != "cuda" for host in layout.hosts):
        return []
    import torch

    from edgeopt.executor.nccl import interface_of

    seat = own_seat(layout.hosts[job.rank].accelerator, interface_of(job))
    seats = [seat] if store is None else agree_on_seats(store, job.rank, len(layout.hosts), seat)
    gpu = gpu_indices(seats)[job.rank]
    if gpu is not None:
        torch.cuda.set_device(gpu)
    return seats


def _keeper(channel: Channel, state: State) -> Callable[[Boundary, int, list[torch.Tensor]], None]:
    """Return what gives a hand-off to the driver."""

    def keep(boundary: Boundary, round_index: int, tensors: list[torch.Tensor]) -> None:
        channel.send(
            Handoff(
                request=state.request or 0,
                purpose="loop" if boundary.purpose == "loop" else "cut",
                cut=boundary.cut,
                round=round_index,
                data=pack(tensors),
            )
        )

    return keep


def _one_by_one(
    job: Job,
    program: Program,
    layout: Layout,
    transport: Any,
    state: State,
    inputs: list[torch.Tensor] | None,
    keep: Callable[[Boundary, int, list[torch.Tensor]], None] | None,
) -> Iterator[Spans]:
    from edgeopt.executor.serve import serve

    for number in range(job.warmup + job.repeat):
        state.request = number
        gc.collect()  # between requests, so that it seldom falls into one
        yield serve(program, layout, job.rank, transport, state, inputs, job.pace, keep)


def _parties(
    job: Job, program: PartyProgram, layout: Layout, peers: Any, state: State, inputs: list[torch.Tensor] | None
) -> Iterator[Spans]:
    from edgeopt.executor.party import GlooLinks, play_parties

    links = GlooLinks(program, layout, job.rank, peers, state, job.pace)
    for number in range(job.warmup + job.repeat):
        state.request = number
        gc.collect()
        yield play_parties(program, links, peers, state, number, inputs)


def _many(
    job: Job, program: Program, layout: Layout, transport: Any, state: State, inputs: list[torch.Tensor] | None
) -> Iterator[Spans]:
    from edgeopt.executor.stream import stream

    requests = None if inputs is None else [inputs]
    count = job.warmup + job.repeat
    yield from stream(program, layout, job.rank, transport, state, requests, count, job.in_flight, job.pace)


def _run_reference(
    job: Job,
    channel: Channel,
    state: State,
    reference: Callable[[Plan, int], list[torch.Tensor]],
    compare: Callable[..., Any],
) -> None:
    import torch

    _prepare(job)
    state.now("reference")
    assert job.result_fd is not None
    result = _load_result(job.result_fd)
    with torch.inference_mode():
        expected = reference(job.plan, job.seed)
        verdict = compare(job.plan, result, expected)
    channel.send(Checked.model_validate(verdict, from_attributes=True))


def _prepare(job: Job, host: Host | None = None) -> None:
    import torch

    torch.set_num_threads(job.threads)
    exact_sleeps()
    torch.zeros(256, 256) @ torch.zeros(256, 256)  # thread stacks and library buffers exist before memory is limited
    if host is not None and job.pace is not None:
        warm_up(host)  # and so does what its yardstick needs
    limit = memory.available_bytes() if job.limit_to_free else job.memory_bytes
    if limit is not None:
        memory.limit_growth(limit)


def _trace(number: int, warmup: bool, spans: Spans, result: str | None, measures: dict[str, float]) -> Trace:
    return Trace(
        request=number,
        warmup=warmup,
        start=spans.start,
        stop=spans.stop,
        digest=result,
        computes=spans.computes,
        sends=spans.sends,
        receives=spans.receives,
        sent=spans.sent,
        taken=spans.taken,
        answers=spans.answers,
        measures=measures,
    )


def _hand_in(job: Job, channel: Channel, tensors: list[torch.Tensor]) -> None:
    """Write the result to the driver's unnamed file, so that nothing is left behind, or send it piece by piece."""
    if job.return_result:
        data = freeze(tensors)
        for start in range(0, len(data), _PART_BYTES):
            part = base64.b64encode(data[start : start + _PART_BYTES])
            channel.send(ResultPart(data=part))
    if job.result_fd is None:
        return
    data = freeze(tensors)
    with os.fdopen(os.dup(job.result_fd), "wb") as stream:
        stream.seek(0)
        stream.truncate()
        stream.write(data)


def _load_result(fd: int) -> list[torch.Tensor]:
    with os.fdopen(os.dup(fd), "rb") as stream:
        stream.seek(0)
        return thaw(stream.read())


def _beat(channel: Channel, state: State) -> None:
    """Start the signs of life, which report the state."""

    def beat() -> None:
        while True:
            channel.send(
                Beat(
                    doing=state.doing,
                    stage=state.stage,
                    round=state.round,
                    request=state.request,
                    peer=state.peer,
                    moves=state.moves,
                    memory_bytes=memory.resident_bytes(),
                )
            )
            time.sleep(_BEAT_S)

    threading.Thread(target=beat, daemon=True).start()


@contextlib.contextmanager
def _telling_failures(channel: Channel, state: State) -> Iterator[None]:
    """Turn an exception into words for the driver."""
    try:
        yield
    except BaseException as error:
        channel.send(Failed(kind=_kind(error), message=_words(error), stage=state.stage, round=state.round))
        if _kind(error) == "program":
            import traceback

            traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def _kind(error: BaseException) -> str:
    if memory.is_out_of_memory(error):
        return "memory"
    if type(error).__name__ == "TransportError":  # its module imports torch, which may be what is missing
        return "peer"
    if isinstance(error, ImportError):
        return "dependency"
    if isinstance(error, InputError):
        return "input"
    return "program"


def _words(error: BaseException) -> str:
    named = isinstance(error, (EdgeoptError, MemoryError))
    return (str(error) if named and str(error) else f"{type(error).__name__}: {error}")[:2000]


if __name__ == "__main__":
    main()
