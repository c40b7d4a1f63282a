"""What carries tensors is decided by who has which GPU; without tags, order alone brings messages to their places."""

from __future__ import annotations

import threading

import pytest

from edgeopt.executor.backends import Seat, agree_on_seats, gpu_indices, own_seat, tensor_backend
from edgeopt.executor.layout import Layout
from edgeopt.executor.state import State
from tests.edgeopt.executor.plans import toy_plan

torch = pytest.importorskip("torch")
import torch.distributed as dist  # noqa: E402

from edgeopt.executor.nccl import OrderedTransport, interface_of  # noqa: E402
from edgeopt.executor.serve import serve  # noqa: E402
from edgeopt.executor.transport import TransportError  # noqa: E402
from tests.edgeopt.executor import toy  # noqa: E402

pytestmark = pytest.mark.torch


def gpu(machine: str, *names: str, nccl: bool = True) -> Seat:
    return Seat(machine, "cuda", names, nccl)


CPU = Seat("a", "cpu")


@pytest.mark.parametrize(
    ("seats", "indices", "backend"),
    [
        ([gpu("a", "x"), gpu("b", "y")], [0, 0], "nccl"),  # a machine each
        ([gpu("a", "x", "y"), gpu("a", "x", "y")], [0, 1], "nccl"),  # two of one machine
        ([gpu("a", "x"), gpu("a", "y")], [0, 0], "nccl"),  # each process is shown its own
        ([gpu("a", "x"), gpu("a", "x")], [0, 0], "gloo"),  # two processes on one GPU
        ([gpu("a", "x", "y"), gpu("a", "x", "y"), gpu("a", "x", "y")], [0, 1, 0], "gloo"),
        ([gpu("a", "x"), CPU], [0, None], "gloo"),  # GPU and processor
        ([CPU, CPU], [None, None], "gloo"),
        ([gpu("a", "x"), gpu("b")], [0, None], "gloo"),  # asked for, and not there
        ([gpu("a", "x"), gpu("b", "y", nccl=False)], [0, 0], "gloo"),
        ([gpu("a", "x")], [0], "gloo"),  # nobody to talk to
    ],
)
def test_nccl_between_gpus_of_their_own_only(seats, indices, backend) -> None:
    assert gpu_indices(seats) == indices
    assert tensor_backend(seats, in_flight=1) == backend
    assert tensor_backend(seats, in_flight=2) == "gloo", "order is not kept"


def test_all_workers_hear_the_same() -> None:
    store, seats = dist.HashStore(), [gpu("a", "x", "y"), CPU, gpu("b", "z", nccl=False)]
    heard: dict[int, list[Seat]] = {}

    def tell(rank: int) -> None:
        heard[rank] = agree_on_seats(store, rank, 3, seats[rank])

    threads = [threading.Thread(target=tell, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert heard == dict.fromkeys(range(3), seats)


def test_a_processor_looks_for_no_gpu() -> None:
    seat = own_seat("cpu", "lo")
    assert (seat.accelerator, seat.gpus, seat.nccl) == ("cpu", (), False)


def test_the_interface_is_that_of_the_address(monkeypatch) -> None:
    class Job:
        own_address: str | None = "127.0.0.1"

    assert interface_of(Job()) in ("lo", "lo0")
    Job.own_address = "203.0.113.77"
    assert interface_of(Job()) is None
    Job.own_address = None
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    assert interface_of(Job()) == "eth7"


class Untagged:
    """A group that ignores tags, as NCCL does, and counts what it is given."""

    def __init__(self, group: dist.ProcessGroupGloo) -> None:
        self._group, self.rank, self.size, self.messages = group, group.rank, group.size, 0

    def send(self, tensors, to, tag):
        self.messages += 1
        return self._group.send(tensors, to, 5)

    def recv(self, tensors, source, tag):
        return self._group.recv(tensors, source, 5)


@pytest.mark.parametrize(
    "places",
    [
        (("phone", 2), ("server", 6)),
        (("phone", 1), ("laptop", 3), ("server", 6)),
        (("phone", 1), ("server", 3), ("phone", 6)),  # there and back within a round
        (("server", 2), ("phone", 4), ("laptop", 6)),
    ],
)
def test_order_alone_brings_messages_to_their_places(places) -> None:
    plan = toy_plan(*places, source="phone", rounds=4)
    layout = Layout.of(plan)
    size = len(layout.hosts)
    stores = {name: dist.HashStore() for name in ("control", "upwards", "downwards")}
    results: list[torch.Tensor] = []
    groups: list[Untagged] = []
    errors: list[BaseException] = []

    def group(name: str, rank: int) -> dist.ProcessGroupGloo:
        options = dist.ProcessGroupGloo._Options()
        options._devices = [dist.ProcessGroupGloo.create_device(hostname="127.0.0.1")]
        return dist.ProcessGroupGloo(stores[name], rank, size, options)

    def work(rank: int) -> None:
        try:
            program = toy.Toy(plan, layout.hosts[rank].stages)
            control, upwards, downwards = (group(name, rank) for name in stores)
            own = [Untagged(upwards), Untagged(downwards)]
            groups.extend(own)
            transport = OrderedTransport(program, layout, control, *own, torch.device("cpu"))
            transport.greet()
            for _ in range(2):
                request = program.request(3) if rank == 0 else None
                spans = serve(program, layout, rank, transport, State(), request)
                if spans.result is not None:
                    results.append(spans.result[0])
            transport.barrier()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    assert not any(thread.is_alive() for thread in threads), "somebody waits for ever"
    (expected,) = toy.reference(plan, 3)
    assert [result.tolist() for result in results] == [expected.tolist()] * 2
    assert sum(each.messages for each in groups) > 2 * 4


def test_a_peer_that_is_gone_is_told_in_words() -> None:
    class Gone:
        def rank(self):
            return 0

        def send(self, *_):
            raise RuntimeError("NCCL says no\nand much more")

    plan = toy_plan(("phone", 2), ("server", 6))
    program, layout = toy.Toy(plan, (0,)), Layout.of(plan)
    transport = OrderedTransport(program, layout, Gone(), Gone(), Gone(), torch.device("cpu"))
    with pytest.raises(TransportError, match=r"^NCCL says no$"):
        transport.hand_over(torch.ones(1, dtype=torch.uint8), 1, 7)


def test_outputs_leave_the_accelerator_unless_the_next_message_starts_there() -> None:
    plan = toy_plan(("phone", 6))
    program = toy.Toy(plan, (0,))
    tensor = torch.ones(3)
    assert program.hand_over(tensor).tolist() == [1, 1, 1]
    meta = torch.ones(3, device="meta")  # stands for an accelerator
    program.stays_on_device = True
    assert program.hand_over(meta).is_meta
