"""From what workers noted to what a request cost, term by term.

On one clock a transfer is the receiver's end minus the sender's start: workers of one machine share theirs, others are
shifted by their measured offset first. Rounds of a request are summed. What is neither compute nor transfer is
overhead: scheduling, waking up.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from edgeopt.executor.layout import Layout
from edgeopt.executor.messages import Trace
from edgeopt.plan import Interval, Plan
from edgeopt.plan import Transfer as PlannedTransfer
from edgeopt.profiles.problem import TextWorkload
from edgeopt.report.data import Comparison, ErrorSplit, Samples, StageReport, TransferReport
from edgeopt.strategies.timeline import link_lane

__all__ = [
    "Moved",
    "RequestTimes",
    "compare_metrics",
    "compare_stages",
    "compare_throughput",
    "compare_transfers",
    "intervals_of",
    "shifted",
    "split_error",
    "times_of",
]

#: Parts that the results of a run with several requests in flight are split into, for a spread.
_BLOCKS = 5


@dataclass(frozen=True, slots=True)
class Moved:
    """What crossed one boundary in one request."""

    seconds: float
    num_bytes: int
    messages: int


@dataclass(frozen=True, slots=True)
class RequestTimes:
    """One request: seconds by stage (a value for each round), by boundary, by rank."""

    latency_s: float
    stop_s: float
    first_round_s: float
    compute_s: dict[int, list[float]]
    moved: dict[int, Moved]
    busy_s: dict[int, float]
    waiting_s: dict[int, float]

    @property
    def transfer_s(self) -> float:
        """All transfers."""
        return sum(moved.seconds for moved in self.moved.values())

    @property
    def total_compute_s(self) -> float:
        """All stages, all rounds."""
        return sum(map(sum, self.compute_s.values()))


def times_of(layout: Layout, traces: Mapping[int, Trace]) -> RequestTimes:
    """Join the traces of all ranks for one request.

    Raises
    ------
    ValueError
        The traces do not fit together: a message without sender, a stage that was not run.
    """
    source = traces[0]
    if source.start is None or source.stop is None:
        raise ValueError("the source noted no start or no end")
    computes: dict[int, list[float]] = defaultdict(list)
    first_round_stop = source.start
    for trace in traces.values():
        for stage, round_index, start, stop in trace.computes:
            computes[stage].append(stop - start)
            if stage == layout.num_stages - 1 and round_index == 0:
                first_round_stop = stop
    if sorted(computes) != list(range(layout.num_stages)):
        raise ValueError(f"stages {sorted(computes)} were run instead of {layout.num_stages} stages")
    sent = {(b, r): (start, q) for trace in traces.values() for b, r, q, start in trace.sends}
    received = {(b, r): stop for trace in traces.values() for b, r, _, stop in trace.receives}
    if sent.keys() != received.keys():
        raise ValueError("messages sent and received differ")
    moved: dict[int, Moved] = {}
    for boundary in sorted({b for b, _ in sent}):
        parts = [(received[key] - start, q) for key, (start, q) in sent.items() if key[0] == boundary]
        moved[boundary] = Moved(sum(s for s, _ in parts), sum(q for _, q in parts), len(parts))
    return RequestTimes(
        latency_s=source.stop - source.start,
        stop_s=source.stop,
        first_round_s=first_round_stop - source.start,
        compute_s=dict(sorted(computes.items())),
        moved=moved,
        busy_s={rank: sum(b - a for _, _, a, b in trace.computes) for rank, trace in traces.items()},
        waiting_s={
            rank: sum(max(b - max(a, source.start), 0.0) for _, _, a, b in trace.receives)
            for rank, trace in traces.items()
        },
    )


def shifted(trace: Trace, offset_s: float) -> Trace:
    """Move all times of a trace to another clock."""
    if offset_s == 0:
        return trace
    return trace.model_copy(
        update={
            "computes": [(k, r, a + offset_s, b + offset_s) for k, r, a, b in trace.computes],
            "sends": [(b, r, q, a + offset_s) for b, r, q, a in trace.sends],
            "receives": [(b, r, a + offset_s, c + offset_s) for b, r, a, c in trace.receives],
        }
    )


def intervals_of(plan: Plan, layout: Layout, traces: Mapping[int, Trace]) -> list[Interval]:
    """Bars of one request on the lanes of devices and links, from its start; times on one clock."""
    origin = traces[0].start or 0.0
    bars = []
    for rank, trace in traces.items():
        for stage, round_index, start, stop in trace.computes:
            label = plan.stages[stage].elements + (f", round {round_index}" if round_index else "")
            bars.append((layout.hosts[rank].device, label, start, stop))
    received = {(b, r): stop for trace in traces.values() for b, r, _, stop in trace.receives}
    for trace in traces.values():
        for index, round_index, _, start in trace.sends:
            boundary = layout.boundaries[index]
            lane = link_lane(layout.hosts[boundary.sender].device, layout.hosts[boundary.receiver].device)
            bars.append((lane, boundary.purpose, start, received[index, round_index]))
    return [
        Interval(lane=lane, label=label, start_s=start - origin, stop_s=stop - origin)
        for lane, label, start, stop in sorted(bars, key=lambda bar: (bar[2], bar[3]))
    ]


def compare_stages(plan: Plan, requests: Sequence[RequestTimes]) -> list[StageReport]:
    """Predicted and measured compute of every stage."""
    return [
        StageReport(
            **stage.model_dump(include={"index", "device", "variant", "start", "stop", "elements"}),
            compute_s=Comparison.between(stage.compute_s, [sum(r.compute_s[stage.index]) for r in requests]),
            first_round_s=Samples.of([r.compute_s[stage.index][0] for r in requests]),
        )
        for stage in plan.stages
    ]


def compare_transfers(plan: Plan, layout: Layout, requests: Sequence[RequestTimes]) -> list[TransferReport]:
    """Predicted and measured transfers, in the order input, cuts, loop, output; those within one device are free."""
    reports = []
    order = [*range(layout.num_stages), layout.loop, layout.num_stages]
    for boundary in (layout.boundaries[index] for index in order):
        if boundary.index not in requests[0].moved:
            continue
        moved = [request.moved[boundary.index] for request in requests]
        planned = _planned(plan, boundary.purpose, boundary.cut)
        reports.append(
            TransferReport(
                purpose=boundary.purpose,
                cut=boundary.cut,
                source=layout.hosts[boundary.sender].device,
                destination=layout.hosts[boundary.receiver].device,
                predicted_bytes=planned.bytes if planned else None,
                bytes=moved[0].num_bytes,
                predicted_messages=planned.messages if planned else None,
                messages=moved[0].messages,
                seconds=Comparison.between(planned.seconds if planned else None, [m.seconds for m in moved]),
            )
        )
    return reports


def compare_metrics(plan: Plan, layout: Layout, requests: Sequence[RequestTimes]) -> dict[str, Comparison]:
    """Time to first token, time per output token and tokens per second of language models; images per second else."""
    workload, measured = plan.problem.workload, {}
    if isinstance(workload, TextWorkload):
        rounds = workload.new_tokens
        measured["ttft_s"] = [r.first_round_s for r in requests]
        if rounds > 1:
            output = [r.moved[layout.num_stages].seconds if layout.num_stages in r.moved else 0.0 for r in requests]
            measured["tpot_s"] = [
                (r.latency_s - r.first_round_s - out) / (rounds - 1) for r, out in zip(requests, output, strict=True)
            ]
        measured["tokens_per_s"] = [workload.batch * rounds / r.latency_s for r in requests]
    else:
        measured["images_per_s"] = [workload.images / r.latency_s for r in requests]
    return {name: Comparison.between(plan.metrics.get(name), samples) for name, samples in measured.items()}


def compare_throughput(plan: Plan, before: Sequence[RequestTimes], counted: Sequence[RequestTimes]) -> Comparison:
    """Results per second, predicted and measured.

    Parameters
    ----------
    before, counted
        Requests that filled the slots (at least one), and those after them, in the order of their results.
    """
    stops = [max(request.stop_s for request in before), *sorted(request.stop_s for request in counted)]
    blocks = min(_BLOCKS, len(counted))
    ends = [round(i * len(counted) / blocks) for i in range(blocks + 1)]
    rates = [(b - a) / (stops[b] - stops[a]) for a, b in pairwise(ends)]
    return Comparison.between(plan.throughput_per_s, rates)


def split_error(plan: Plan, latency_s: Comparison, requests: Sequence[RequestTimes]) -> ErrorSplit:
    """Split predicted minus measured latency over compute, transfers and the rest (medians over requests)."""
    compute_s = Samples.of([r.total_compute_s for r in requests]).median
    transfer_s = Samples.of([r.transfer_s for r in requests]).median
    total = plan.latency_s - latency_s.median
    compute = sum(stage.compute_s for stage in plan.stages) - compute_s
    transfer = sum(planned.seconds for planned in plan.transfers) - transfer_s
    return ErrorSplit(
        total_s=total,
        compute_s=compute,
        transfer_s=transfer,
        overhead_s=total - compute - transfer,
        overhead_ratio=Samples.of([r.latency_s / (r.total_compute_s + r.transfer_s) for r in requests]).median,
    )


def _planned(plan: Plan, purpose: str, cut: int) -> PlannedTransfer | None:
    """Find the plan's transfer; there is one input, one output and one loop, so only inner cuts are told apart."""
    return next((t for t in plan.transfers if t.purpose == purpose and (purpose != "cut" or t.cut == cut)), None)
