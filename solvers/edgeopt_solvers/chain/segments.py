"""Feasible segments of a chain and the hand-overs between them: the ground set of ``milp.py`` and ``cp.py``."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from edgeopt_solvers.chain.arrays import Array
from edgeopt_solvers.chain.deadline import look, ticking
from edgeopt_solvers.chain.instance import Chain, Solution
from edgeopt_solvers.chain.media import Reserved
from edgeopt_solvers.chain.movement import element_loads, variant_loads

__all__ = ["Handover", "Segment", "Segments", "unit_of"]


@dataclass(frozen=True, slots=True)
class Segment:
    """Elements ``start`` to ``stop`` (half open) on one device with one variant."""

    device: int
    variant: int
    start: int
    stop: int

    @property
    def state(self) -> tuple[int, int]:
        """Device and variant."""
        return self.device, self.variant


@dataclass(frozen=True, slots=True)
class Handover:
    """From one (device, variant) to another at a cut, with what it costs."""

    cut: int
    before: tuple[int, int]
    after: tuple[int, int]
    seconds: float
    loss: float


@dataclass(slots=True)
class Segments:
    """Everything a plan can be put together from.

    Attributes
    ----------
    deadline
        When listing them raises :class:`~edgeopt_solvers.chain.deadline.OutOfTimeError`.
    items : list of Segment
        Runnable segments that alone fit their device's memory and begin and end at legal cuts.
    handovers : list of Handover
        Allowed changes of state between them.
    seconds, loss, resident, transient, load
        Per segment: compute seconds, quality loss, summed resident and largest transient bytes, and what newly loading
        it adds to the objective (with reuse "once" the variant's shared bytes too).
    shared_load : (D, V)
        What newly loading a variant's shared bytes adds to the objective.
    reserved : Reserved
        Over its links only the messages' latency counts here; what the bytes take depends on shares.
    """

    chain: Chain
    deadline: float = math.inf
    items: list[Segment] = field(default_factory=list)
    handovers: list[Handover] = field(default_factory=list)
    seconds: dict[Segment, float] = field(default_factory=dict)
    loss: dict[Segment, float] = field(default_factory=dict)
    resident: dict[Segment, float] = field(default_factory=dict)
    transient: dict[Segment, float] = field(default_factory=dict)
    load: dict[Segment, float] = field(default_factory=dict)
    shared_load: Array = field(init=False)
    element_load: Array = field(init=False)
    reserved: Reserved = field(init=False)

    def __post_init__(self) -> None:
        chain = self.chain
        self.reserved = Reserved(chain)
        self.element_load, self.shared_load = element_loads(chain), variant_loads(chain)
        for device in range(chain.num_devices):
            for variant in range(chain.num_variants):
                for start in range(chain.num_elements):
                    if start == 0 or chain.cut_legal[start]:
                        look(self.deadline)
                        self._grow(device, variant, start)
        self.handovers = list(self._handovers())

    def _grow(self, device: int, variant: int, start: int) -> None:
        """Add the segments that begin at ``start``, until one can grow no further."""
        chain = self.chain
        if start == 0 and math.isinf(self.input_s(device)):
            return
        room = chain.allowance(float(chain.memory_bytes[device])) - float(chain.shared_bytes[variant])
        seconds = loss = resident = transient = 0.0
        load = float(self.shared_load[device, variant]) if chain.reuse == "once" else 0.0
        for element in range(start, chain.num_elements):
            seconds += float(chain.compute_s[device, variant, element])
            loss += float(chain.quality_loss[variant, element])
            resident += float(chain.resident_bytes[variant, element])
            load += float(self.element_load[device, variant, element])
            transient = max(transient, float(chain.transient_bytes[variant, element]))
            if math.isinf(seconds) or chain.pins.get(element, device) != device or resident + transient > room:
                return
            stop = element + 1
            last = stop == chain.num_elements
            if stop - start < chain.min_segment or not (last or chain.cut_legal[stop]):
                continue
            if last and math.isinf(self.output_s(device)):
                continue
            segment = Segment(device, variant, start, stop)
            self.items.append(segment)
            self.seconds[segment], self.loss[segment] = seconds, loss
            self.resident[segment], self.transient[segment], self.load[segment] = resident, transient, load

    def _handovers(self) -> Iterator[Handover]:
        chain = self.chain
        ends = {(segment.stop, *segment.state) for segment in self.items}
        starts = defaultdict(list)
        for start, *state in sorted({(segment.start, *segment.state) for segment in self.items}):
            starts[start].append(state)
        for cut, *before in ticking(sorted(ends), self.deadline):
            for after in starts[cut]:
                if before == after or (chain.reuse == "once" and before[0] == after[0]):
                    continue
                seconds = self.transfer_s(before[0], after[0], cut)
                loss = float(chain.handoff_loss[before[1], after[1], cut])
                if math.isfinite(seconds) and math.isfinite(loss):
                    yield Handover(cut, (before[0], before[1]), (after[0], after[1]), seconds, loss)

    @property
    def looped(self) -> bool:
        """Whether the loop term is anything but zero."""
        return self.chain.num_devices > 1 and (self.chain.loop_bytes > 0 or self.chain.loop_messages > 0)

    def transfer_s(self, i: int, j: int, cut: int) -> float:
        """Seconds of a transfer that no share changes; ``inf`` without a link."""
        seconds = self.chain.transfer_s(i, j, cut)
        return (
            float(self.reserved.delay.cut[cut, i, j]) if self.reserved.links[i, j] and seconds < math.inf else seconds
        )

    def loop_s(self, last: int, first: int) -> float:
        """Like :meth:`transfer_s`, for the loop."""
        seconds = self.chain.loop_s(last, first)
        inside = self.reserved.links[last, first] and seconds < math.inf
        return float(self.reserved.delay.loop[last, first]) if inside else seconds

    def channel(self, i: int, j: int) -> str:
        """Name what a transfer keeps busy: its link, or its time-shared medium."""
        medium = int(self.chain.medium[i, j])
        return f"medium_{medium}" if medium >= 0 else f"link_{i}_{j}"

    def input_s(self, device: int) -> float:
        """Seconds of the input to a first stage on ``device``."""
        return 0.0 if self.chain.source is None else self.transfer_s(self.chain.source, device, 0)

    def output_s(self, device: int) -> float:
        """Seconds of the result from a last stage on ``device``."""
        chain = self.chain
        return 0.0 if chain.source is None else self.transfer_s(device, chain.source, chain.num_elements)

    def watts(self, sender: int, receiver: int) -> float:
        """Power while something moves from one device to another."""
        chain = self.chain
        if chain.send_power_w is None or chain.receive_power_w is None:
            return 0.0
        return float(chain.send_power_w[sender] + chain.receive_power_w[receiver])

    def compute_watts(self, device: int) -> float:
        """Power while a device computes."""
        return 0.0 if self.chain.power_w is None else float(self.chain.power_w[device])

    def chosen(self, solution: Solution) -> list[Segment] | None:
        """Return the segments of a solution; ``None`` when one of them is not feasible."""
        stages = zip(solution.devices, solution.variants, solution.starts, solution.cuts, strict=True)
        segments = [Segment(*stage) for stage in stages]
        return segments if all(segment in self.seconds for segment in segments) else None

    @staticmethod
    def solution(chosen: list[Segment]) -> Solution:
        """Put chosen segments in order."""
        ordered = sorted(chosen, key=lambda segment: segment.start)
        return Solution(
            tuple(segment.stop for segment in ordered),
            tuple(segment.device for segment in ordered),
            tuple(segment.variant for segment in ordered),
        )


def unit_of(values: list[float]) -> float:
    """Return a power of ten near the geometric mean of the positive finite values: solvers want numbers near 1.

    Not near their mean: a few transfers over links that are nearly dead would make all others vanish in tolerances.
    """
    positive = [value for value in values if 0 < value < math.inf]
    if not positive:
        return 1.0
    return float(10.0 ** round(math.fsum(map(math.log10, positive)) / len(positive)))
