"""From what workers noted to what a request cost, term by term.

On one clock a transfer is the receiver's end minus the sender's start: workers of one machine share theirs, others are
shifted by their measured offset first. Rounds of a request are summed. What is neither compute nor transfer is
overhead: scheduling, waking up.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

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

#: Bars of a stream that a timeline shows: thousands of requests are no picture.
_MOST_BARS = 400


@dataclass(frozen=True, slots=True)
class Moved:
    """What crossed one boundary in one request, or went from one party to another under one label."""

    seconds: float
    num_bytes: float
    messages: float


_NOTHING = Moved(0.0, 0, 0)


@dataclass(frozen=True, slots=True)
class RequestTimes:
    """One request: seconds by stage (a value for each round), by boundary, by rank.

    ``moved`` has a boundary's index as its key, or for parties the ranks of sender and receiver and the label.
    ``active_s`` is from a rank's first to its last time of computing or waiting.

    Of a stream of requests everything but ``first_round_s`` and ``stop_s`` is an average per request, and ``latency_s``
    the mean of ``response_s`` (in the order of arrival); ``span_s`` is then the stream's duration per request.
    """

    latency_s: float
    span_s: float
    stop_s: float
    first_round_s: float
    compute_s: dict[int, list[float]]
    moved: dict[Any, Moved]
    busy_s: dict[int, float]
    waiting_s: dict[int, float]
    active_s: dict[int, float]
    response_s: list[float] = field(default_factory=list)
    measures: dict[str, float] = field(default_factory=dict)

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
            if round_index == layout.prefill_rounds - 1 and (stage == layout.num_stages - 1 or not layout.boundaries):
                first_round_stop = max(first_round_stop, stop)
    if not layout.boundaries:  # a party may find nothing to do
        computes = defaultdict(list, {k: computes[k] or [0.0] for k in range(layout.num_stages)})
    if sorted(computes) != list(range(layout.num_stages)):
        raise ValueError(f"stages {sorted(computes)} were run instead of {layout.num_stages} stages")
    sent = {(b, r): (start, q) for trace in traces.values() for b, r, q, start in trace.sends}
    received = {(b, r): stop for trace in traces.values() for b, r, _, stop in trace.receives}
    if sent.keys() != received.keys():
        raise ValueError("messages sent and received differ")
    moved: dict[Any, Moved] = dict(_between_parties(traces))
    for boundary in sorted({b for b, _ in sent}):
        parts = [(received[key] - start, q) for key, (start, q) in sent.items() if key[0] == boundary]
        moved[boundary] = Moved(sum(s for s, _ in parts), sum(q for _, q in parts), len(parts))
    stream = [answered - arrived for _, arrived, answered in sorted(source.answers)]
    each = 1.0 / max(1, len(stream))
    if stream:
        computes = defaultdict(list, {stage: [sum(seconds) * each] for stage, seconds in computes.items()})
        moved = {way: Moved(m.seconds * each, m.num_bytes * each, m.messages * each) for way, m in moved.items()}
    return RequestTimes(
        latency_s=sum(stream) * each if stream else source.stop - source.start,
        span_s=(source.stop - source.start) * each,
        stop_s=source.stop,
        first_round_s=first_round_stop - source.start,
        compute_s=dict(sorted(computes.items())),
        moved=moved,
        busy_s={rank: sum(b - a for _, _, a, b in trace.computes) * each for rank, trace in traces.items()},
        waiting_s={
            rank: each * sum(max(b - max(a, source.start), 0.0) for a, b in _waits(trace))
            for rank, trace in traces.items()
        },
        active_s={rank: _active_s(trace, source.start, source.stop) * each for rank, trace in traces.items()},
        response_s=stream,
        measures=dict(source.measures),
    )


def _waits(trace: Trace) -> list[tuple[float, float]]:
    """When a worker waited for messages."""
    return [(a, b) for _, _, a, b in trace.receives] + [(a, b) for _, _, a, b, _ in trace.taken]


def _active_s(trace: Trace, start: float, stop: float) -> float:
    """Seconds from the first to the last that a worker did within a request."""
    spans = [(a, b) for _, _, a, b in trace.computes] + _waits(trace)
    if not spans:
        return 0.0
    return max(0.0, min(stop, max(b for _, b in spans)) - max(start, min(a for a, _ in spans)))


def _between_parties(traces: Mapping[int, Trace]) -> Iterator[tuple[tuple[int, int, str], Moved]]:
    """Yield what went from each party to each other under each label; one that nobody took has no seconds."""
    arrived = {(sender, rank, n): at for rank, trace in traces.items() for sender, n, _, _, at in trace.taken}
    parts: dict[tuple[int, int, str], list[tuple[float, int]]] = defaultdict(list)
    for rank, trace in traces.items():
        for to, number, label, num_bytes, start in trace.sent:
            seconds = arrived.pop((rank, to, number), start) - start
            parts[rank, to, label].append((seconds, num_bytes))
    if arrived:
        raise ValueError("messages were received that nobody noted to have sent")
    for key, messages in parts.items():
        yield key, Moved(sum(s for s, _ in messages), sum(q for _, q in messages), len(messages))


def shifted(trace: Trace, offset_s: float) -> Trace:
    """Move all times of a trace to another clock."""
    if offset_s == 0:
        return trace
    return trace.model_copy(
        update={
            "computes": [(k, r, a + offset_s, b + offset_s) for k, r, a, b in trace.computes],
            "sends": [(b, r, q, a + offset_s) for b, r, q, a in trace.sends],
            "receives": [(b, r, a + offset_s, c + offset_s) for b, r, a, c in trace.receives],
            "sent": [(to, n, label, q, a + offset_s) for to, n, label, q, a in trace.sent],
            "taken": [(k, n, a + offset_s, b + offset_s, c + offset_s) for k, n, a, b, c in trace.taken],
            "answers": [(q, a + offset_s, b + offset_s) for q, a, b in trace.answers],
        }
    )


def intervals_of(plan: Plan, layout: Layout, traces: Mapping[int, Trace]) -> list[Interval]:
    """Bars of one request on the lanes of devices and links, from its start; times on one clock.

    Of a stream of requests the first :data:`_MOST_BARS`.
    """
    origin, streams = traces[0].start or 0.0, bool(traces[0].answers)
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
    arrived = {(sender, rank, n): at for rank, trace in traces.items() for sender, n, _, _, at in trace.taken}
    for rank, trace in traces.items():
        for to, number, label, _, start in trace.sent:
            lane = link_lane(layout.hosts[rank].device, layout.hosts[to].device)
            bars.append((lane, label or "message", start, arrived.get((rank, to, number), start)))
    return [
        Interval(lane=lane, label=label, start_s=start - origin, stop_s=stop - origin)
        for lane, label, start, stop in sorted(bars, key=lambda bar: (bar[2], bar[3]))[
            : _MOST_BARS if streams else None
        ]
    ]


def compare_stages(plan: Plan, requests: Sequence[RequestTimes]) -> list[StageReport]:
    """Predicted and measured compute of every stage."""
    prefill_rounds = Layout.of(plan).prefill_rounds
    return [
        StageReport(
            **stage.model_dump(include={"index", "device", "variant", "start", "stop", "elements"}),
            compute_s=Comparison.between(stage.compute_s, [sum(r.compute_s[stage.index]) for r in requests]),
            first_round_s=Samples.of([sum(r.compute_s[stage.index][:prefill_rounds]) for r in requests]),
        )
        for stage in plan.stages
    ]


def compare_transfers(plan: Plan, layout: Layout, requests: Sequence[RequestTimes]) -> list[TransferReport]:
    """Predicted and measured transfers; those within one device are free.

    Of a chain in the order input, cuts, loop, output; of parties by ordered pair and label.
    """
    reports = []
    order = [*range(layout.num_stages), layout.loop, layout.num_stages] if layout.boundaries else []
    ways: list[tuple[Any, str, int, int, int]] = [
        (b.index, b.purpose, b.cut, b.sender, b.receiver) for b in (layout.boundaries[index] for index in order)
    ]
    labels = sorted({key for request in requests for key in request.moved if isinstance(key, tuple)})
    ways += [((a, b, label), label or "message", 0, a, b) for a, b, label in labels]
    for key, purpose, cut, a, b in ways:
        if not any(key in request.moved for request in requests):
            continue
        moved = [request.moved.get(key, _NOTHING) for request in requests]
        source, destination = layout.hosts[a].device, layout.hosts[b].device
        if isinstance(key, tuple):
            planned = _planned_between(plan, purpose, source, destination)
        else:
            planned = _planned(plan, purpose, cut)
        reports.append(
            TransferReport(
                purpose=purpose,
                cut=cut,
                source=source,
                destination=destination,
                predicted_bytes=planned.bytes if planned else None,
                bytes=Samples.of([m.num_bytes for m in moved]).median,
                predicted_messages=planned.messages if planned else None,
                messages=Samples.of([m.messages for m in moved]).median,
                seconds=Comparison.between(planned.seconds if planned else None, [m.seconds for m in moved]),
            )
        )
    return reports


def compare_metrics(plan: Plan, layout: Layout, requests: Sequence[RequestTimes]) -> dict[str, Comparison]:
    """Time to first token, time per output token and tokens per second of language models; images per second else.

    Of a stream of requests the load of the device that is loaded most; and what the program itself measured.
    """
    workload, measured = plan.problem.workload, {}
    if requests[0].response_s:
        measured["load"] = [max(r.busy_s.values()) / r.span_s for r in requests]
    elif isinstance(workload, TextWorkload):
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
    for name in requests[0].measures:
        measured[name] = [r.measures[name] for r in requests]
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
    if not plan.is_chain:
        return _split_by_busiest(plan, latency_s, requests)
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


def _split_by_busiest(plan: Plan, latency_s: Comparison, requests: Sequence[RequestTimes]) -> ErrorSplit:
    """Split by the rank that computes longest: parties work at the same time, so that sums over all say nothing."""
    ranks = requests[0].busy_s
    rank = max(ranks, key=lambda r: Samples.of([request.busy_s[r] for request in requests]).median)
    planned: dict[str, float] = defaultdict(float)
    for stage in plan.stages:
        planned[stage.device] += stage.compute_s
    compute_s = Samples.of([r.busy_s[rank] for r in requests]).median
    own = [r.active_s[rank] - r.busy_s[rank] - r.waiting_s[rank] for r in requests]
    total, overhead_s = plan.latency_s - latency_s.median, -Samples.of(own).median
    compute = max(planned.values(), default=0.0) - compute_s
    ratios = [r.latency_s / max(r.latency_s - mine, 1e-12) for r, mine in zip(requests, own, strict=True)]
    return ErrorSplit(
        total_s=total,
        compute_s=compute,
        transfer_s=total - compute - overhead_s,
        overhead_s=overhead_s,
        overhead_ratio=Samples.of(ratios).median,
    )


def _planned_between(plan: Plan, purpose: str, source: str, destination: str) -> PlannedTransfer | None:
    """Find what parties were planned to send."""
    ends = (purpose, source, destination)
    return next((t for t in plan.transfers if (t.purpose, t.source, t.destination) == ends), None)


def _planned(plan: Plan, purpose: str, cut: int) -> PlannedTransfer | None:
    """Find the plan's transfer; there is one input, one output and one loop, so only inner cuts are told apart."""
    return next((t for t in plan.transfers if t.purpose == purpose and (purpose != "cut" or t.cut == cut)), None)
