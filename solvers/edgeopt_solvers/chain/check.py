"""What a chain plan costs and whether it is allowed, recomputed from its decisions alone.

Plain loops over stages and elements; nothing here is shared with any solver.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from dataclasses import dataclass, field

from edgeopt_solvers.chain.instance import Chain, Solution

__all__ = ["Evaluation", "Transfer", "evaluate", "list_transfers"]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Cost and feasibility of one solution.

    Attributes
    ----------
    objective
        The weighted sum the instance minimises; ``inf`` when a part of it is.
    metrics
        ``latency_s``, ``period_s``, ``quality_loss``, ``num_stages``, ``energy_j`` (when powers are given), per used
        device d ``memory_bytes[d]`` and ``busy_s[d]``, and where ``held`` or ``load_cost`` is given
        ``moved_bytes`` and ``movement_cost``: what devices must load newly, and what that adds to the objective.
    violations
        One sentence for each broken rule, with names, amounts and units; empty when feasible.
    terms
        Where latency goes, reserved transfers with their shares: ``input_s``,
        ``compute_s``, ``transfer_s``, ``loop_s``, ``output_s``.
    """

    objective: float
    metrics: dict[str, float]
    violations: tuple[str, ...]
    terms: dict[str, float] = field(default_factory=dict)


def evaluate(chain: Chain, solution: Solution) -> Evaluation:
    """Recompute every metric of ``solution`` and list every rule it breaks.

    Parameters
    ----------
    chain
        The instance.
    solution
        Decisions; malformed ones (wrong lengths, devices that do not exist) are reported as violations.
    """
    malformed = _malformed(chain, solution)
    if malformed:
        return Evaluation(math.inf, {}, tuple(malformed))
    stages = list(zip(solution.starts, solution.cuts, solution.devices, solution.variants, strict=True))
    violations = _broken_rules(chain, stages)

    busy: dict[int, float] = defaultdict(float)
    terms = {"input_s": 0.0, "compute_s": 0.0, "transfer_s": 0.0, "loop_s": 0.0, "output_s": 0.0}
    energy = 0.0
    for start, stop, device, variant in stages:
        for element in range(start, stop):
            seconds = float(chain.compute_s[device, variant, element])
            if math.isinf(seconds):
                violations.append(f"element {element} cannot run on device {device} with variant {variant}")
            busy[device] += seconds
            terms["compute_s"] += seconds
            if chain.power_w is not None and chain.power_w[device] > 0:
                energy += float(chain.power_w[device]) * seconds

    channel_busy: dict[tuple[str, int, int], float] = defaultdict(float)
    transfers = list_transfers(chain, solution)
    shares, faults = _shares(chain, solution, transfers)
    violations += faults
    for number, (move, share) in enumerate(zip(transfers, shares, strict=True)):
        term, sender, receiver, num_bytes, messages, what = move
        seconds = _seconds(chain, sender, receiver, num_bytes, messages, share)
        if math.isinf(_seconds(chain, sender, receiver, num_bytes, messages, 1.0)):
            violations.append(f"no link from device {sender} to device {receiver} for {what}")
        elif math.isinf(seconds):
            violations.append(f"{what} holds no share of medium {chain.medium[sender, receiver]} and never arrives")
        terms[term] += seconds
        channel_busy[_channel(chain, sender, receiver, number)] += seconds
        if chain.send_power_w is not None and chain.receive_power_w is not None and seconds > 0:
            watts = float(chain.send_power_w[sender] + chain.receive_power_w[receiver])
            energy += watts * seconds if watts > 0 else 0.0

    loss = _quality(chain, stages)
    if math.isinf(loss):
        violations.append("a hand-off between variants is forbidden at one of the cuts (handoff_loss is inf)")
    metrics = {
        "latency_s": sum(terms.values()),
        "period_s": max([*busy.values(), *channel_busy.values()]),
        "quality_loss": loss,
        "num_stages": float(len(stages)),
    }
    if chain.power_w is not None:
        metrics["energy_j"] = energy
    violations += _broken_budgets(chain, metrics)
    for device, num_bytes in _memory(chain, stages).items():
        limit = float(chain.memory_bytes[device])
        metrics[f"memory_bytes[{device}]"] = num_bytes
        metrics[f"busy_s[{device}]"] = busy[device]
        if num_bytes > chain.allowance(limit):
            violations.append(f"device {device} needs {num_bytes:.6g} bytes of memory, has {limit:.6g} bytes")

    value_of = {"latency": "latency_s", "throughput": "period_s", "energy": "energy_j", "quality": "quality_loss"}
    objective = sum(weight * metrics[value_of[name]] for name, weight in chain.weights.items())
    if chain.held is not None or chain.load_cost.any():
        loaded = _loaded(chain, stages)
        metrics["moved_bytes"] = sum(loaded.values())
        metrics["movement_cost"] = sum(float(chain.load_cost[device]) * num for device, num in loaded.items())
        objective += metrics["movement_cost"]
    return Evaluation(objective, metrics, tuple(violations), terms)


Stage = tuple[int, int, int, int]  # first element, one past the last, device, variant
Transfer = tuple[str, int, int, float, float, str]  # term, sender, receiver, bytes, messages, purpose


def _malformed(chain: Chain, solution: Solution) -> list[str]:
    """Say what keeps the decisions from being stages at all."""
    lengths = {len(solution.cuts), len(solution.devices), len(solution.variants)}
    if len(lengths) != 1 or 0 in lengths:
        return ["cuts, devices and variants must have one entry for each of at least one stage"]
    faults = []
    if list(solution.cuts) != sorted(set(solution.cuts)) or solution.cuts[0] < 1:
        faults.append(f"cuts {solution.cuts} must increase, the first being at least 1")
    if solution.cuts[-1] != chain.num_elements:
        faults.append(f"the last cut is {solution.cuts[-1]}, the chain has {chain.num_elements} elements")
    faults += [f"device {d} does not exist" for d in solution.devices if not 0 <= d < chain.num_devices]
    faults += [f"variant {v} does not exist" for v in solution.variants if not 0 <= v < chain.num_variants]
    return faults


def _broken_rules(chain: Chain, stages: list[Stage]) -> list[str]:
    """Check the rules on the shape of the plan: repeats, lengths, cuts, pins."""
    broken = []
    for (_, cut, device, variant), (_, _, next_device, next_variant) in itertools.pairwise(stages):
        if (device, variant) == (next_device, next_variant):
            broken.append(f"the stages on both sides of cut {cut} are one: device {device}, variant {variant}")
        if not chain.cut_legal[cut]:
            broken.append(f"a stage begins at element {cut}, where cut_legal forbids it")
    devices = [device for _, _, device, _ in stages]
    if chain.reuse == "once":
        for device in sorted(set(devices)):
            if devices.count(device) > 1:
                broken.append(f"device {device} holds {devices.count(device)} stages, and reuse is 'once'")
    if chain.max_stages is not None and len(stages) > chain.max_stages:
        broken.append(f"{len(stages)} stages, and max_stages is {chain.max_stages}")
    for start, stop, _, _ in stages:
        if stop - start < chain.min_segment:
            broken.append(f"stage {start}..{stop} has {stop - start} elements, and min_segment is {chain.min_segment}")
    for element, pinned in chain.pins.items():
        for start, stop, device, _ in stages:
            if start <= element < stop and device != pinned:
                broken.append(f"element {element} runs on device {device}, and is pinned to device {pinned}")
    return broken


def _broken_budgets(chain: Chain, metrics: dict[str, float]) -> list[str]:
    broken = []
    for name, metric, limit, unit, scale in (
        ("max_latency_s", "latency_s", chain.max_latency_s, " s", 0.0),
        ("max_period_s", "period_s", chain.max_period_s, " s", 0.0),
        ("max_energy_j", "energy_j", chain.max_energy_j, " J", 0.0),
        ("max_quality_loss", "quality_loss", chain.max_quality_loss, "", chain.quality_scale),
    ):
        if limit is not None and metrics[metric] > chain.allowance(limit, scale):
            broken.append(f"{metric} is {metrics[metric]:.9g}{unit}, and {name} is {limit:.9g}{unit}")
    return broken


def list_transfers(chain: Chain, solution: Solution) -> list[Transfer]:
    """List everything that moves between two devices: the input, the cuts, the loop, the result."""
    devices, end = solution.devices, chain.num_elements
    first, last = devices[0], devices[-1]
    moves = []
    if chain.source is not None:
        moves.append(("input_s", chain.source, first, 0, "the input"))
    for cut, (sender, receiver) in zip(solution.cuts, itertools.pairwise(devices), strict=False):
        moves.append(("transfer_s", sender, receiver, cut, f"cut {cut}"))
    transfers = [
        (term, sender, receiver, float(chain.cut_bytes[cut]), float(chain.cut_messages[cut]), what)
        for term, sender, receiver, cut, what in moves
        if sender != receiver
    ]
    if last != first and (chain.loop_bytes > 0 or chain.loop_messages > 0):
        transfers.append(("loop_s", last, first, chain.loop_bytes, chain.loop_messages, "the loop"))
    if chain.source is not None and last != chain.source:
        num_bytes, messages = float(chain.cut_bytes[end]), float(chain.cut_messages[end])
        transfers.append(("output_s", last, chain.source, num_bytes, messages, "the result"))
    return transfers


def _mode(chain: Chain, sender: int, receiver: int) -> str:
    medium = int(chain.medium[sender, receiver])
    return "private" if medium < 0 else chain.media[medium]


def _shares(chain: Chain, solution: Solution, transfers: list[Transfer]) -> tuple[list[float], list[str]]:
    """Return a share for each transfer, and what is wrong with those of the solution."""
    reserves = [_mode(chain, sender, receiver) == "reserved" for _, sender, receiver, *_ in transfers]
    whole = [1.0] * len(transfers)
    if solution.shares is None:
        if not any(reserves):
            return whole, []
        return whole, ["shares are missing, and a reserved medium is used: fill them in with chain.shares.with_shares"]
    if len(solution.shares) != len(transfers):
        return whole, [f"{len(solution.shares)} shares for {len(transfers)} transfers"]
    faults = []
    used: dict[int, list[float]] = defaultdict(list)
    for (_, sender, receiver, _, _, what), share, reserved in zip(transfers, solution.shares, reserves, strict=True):
        if not 0 <= share <= 1:
            faults.append(f"the share of {what} is {share:.9g}, and must be within 0..1")
        elif reserved:
            used[int(chain.medium[sender, receiver])].append(share)
        elif share != 1:
            faults.append(f"the share of {what} is {share:.9g}, and its link reserves nothing: give 1")
    for medium, held in used.items():
        if math.fsum(held) > chain.allowance(1.0):
            faults.append(f"the shares of medium {medium} add up to {math.fsum(held):.12g}, above 1")
    return (whole, faults) if faults else (list(solution.shares), [])


def _channel(chain: Chain, sender: int, receiver: int, number: int) -> tuple[str, int, int]:
    """Name what a transfer keeps busy: its medium, the channel that it reserved, or its link."""
    mode = _mode(chain, sender, receiver)
    if mode == "time_shared":
        return mode, int(chain.medium[sender, receiver]), 0
    return (mode, number, 0) if mode == "reserved" else (mode, sender, receiver)


def _seconds(chain: Chain, sender: int, receiver: int, num_bytes: float, messages: float, share: float) -> float:
    if num_bytes == 0 and messages == 0:
        return 0.0
    rate = float(chain.rate_bytes_per_s[sender, receiver])
    if rate == 0:
        return math.inf
    delay = messages * float(chain.latency_s[sender, receiver])
    if num_bytes == 0 or math.isinf(rate):
        return delay
    if share == 0:
        return math.inf
    medium = int(chain.medium[sender, receiver])
    if medium >= 0 and chain.band_hz[medium] > 0:
        snr = float(chain.snr[sender, receiver])
        rate = share * float(chain.band_hz[medium]) * math.log1p(snr / share) / math.log(2.0) / 8.0
    else:
        rate = share * rate
    return delay + num_bytes / rate if rate > 0 else math.inf


def _quality(chain: Chain, stages: list[Stage]) -> float:
    loss = 0.0
    for start, stop, _, variant in stages:
        for element in range(start, stop):
            loss += float(chain.quality_loss[variant, element])
    for (_, cut, _, variant), (_, _, _, next_variant) in itertools.pairwise(stages):
        loss += float(chain.handoff_loss[variant, next_variant, cut])
    return loss


def _memory(chain: Chain, stages: list[Stage]) -> dict[int, float]:
    """Bytes on each used device: residents, each variant's shared bytes once, and the largest transient."""
    resident: dict[int, float] = defaultdict(float)
    transient: dict[int, float] = defaultdict(float)
    holds: dict[int, set[int]] = defaultdict(set)
    for start, stop, device, variant in stages:
        holds[device].add(variant)
        for element in range(start, stop):
            resident[device] += float(chain.resident_bytes[variant, element])
            transient[device] = max(transient[device], float(chain.transient_bytes[variant, element]))
    return {
        device: resident[device] + sum(float(chain.shared_bytes[v]) for v in sorted(variants)) + transient[device]
        for device, variants in holds.items()
    }


def _loaded(chain: Chain, stages: list[Stage]) -> dict[int, float]:
    """Bytes that each used device must load newly: residents it does not hold, and variants it holds nothing of."""
    loaded: dict[int, float] = defaultdict(float)
    seen: set[tuple[int, int]] = set()
    for start, stop, device, variant in stages:
        has = [False] * chain.num_elements if chain.held is None else chain.held[device, variant].tolist()
        for element in range(start, stop):
            if not has[element]:
                loaded[device] += float(chain.resident_bytes[variant, element])
        if (device, variant) not in seen and not any(has):
            loaded[device] += float(chain.shared_bytes[variant])
        seen.add((device, variant))
    return loaded
