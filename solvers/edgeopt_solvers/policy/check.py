"""What a policy costs and whether it is allowed, recomputed from its decisions alone: plain arithmetic, no solver."""

from __future__ import annotations

import math

import numpy as np

from edgeopt_solvers.policy.evaluation import Evaluation
from edgeopt_solvers.policy.instance import (
    LIMIT_TOLERANCE,
    Cascade,
    CascadeSolution,
    Speculative,
    SpeculativeSolution,
    StagedSolution,
    StagedSpeculative,
)
from edgeopt_solvers.policy.staged_check import evaluate_staged

__all__ = ["Evaluation", "evaluate"]


def evaluate(
    instance: Speculative | StagedSpeculative | Cascade,
    solution: SpeculativeSolution | StagedSolution | CascadeSolution,
) -> Evaluation:
    """Recompute every metric of ``solution`` and list every rule it breaks."""
    if isinstance(instance, StagedSpeculative) and isinstance(solution, StagedSolution):
        return evaluate_staged(instance, solution)
    if isinstance(instance, Speculative) and isinstance(solution, SpeculativeSolution):
        return _speculative(instance, solution)
    if isinstance(instance, Cascade) and isinstance(solution, CascadeSolution):
        return _cascade(instance, solution)
    return Evaluation(math.inf, {}, (f"a {type(solution).__name__} is no solution of a {type(instance).__name__}",))


# ── speculative decoding ─────────────────────────────────────────────────────────────────────────────────────────


def _speculative(instance: Speculative, s: SpeculativeSolution) -> Evaluation:
    D, length = instance.num_devices, s.length
    if not instance.min_length <= length <= instance.max_length:
        limits = f"{instance.min_length}..{instance.max_length}"
        return Evaluation(math.inf, {}, (f"the draft length is {length}, allowed are {limits}",))
    for name, index, count in (("target", s.target, instance.num_targets), ("target_device", s.target_device, D)):
        if not 0 <= index < count:
            return Evaluation(math.inf, {}, (f"{name} {index} is not in 0..{count - 1}",))
    for name, index, count in (("draft", s.draft, instance.num_drafts), ("draft_device", s.draft_device, D)):
        if length > 0 and not 0 <= index < count:
            return Evaluation(math.inf, {}, (f"{name} {index} is not in 0..{count - 1}",))
    d, e = s.draft_device, s.target_device
    tokens = 1.0
    draft_s = up_s = down_s = up_bytes = down_bytes = 0.0
    if length > 0:
        likely = 1.0
        for position in range(length):
            likely *= float(instance.acceptance[s.draft, s.target, position])
            tokens += likely
        draft_s = length * float(instance.draft_s[s.draft, d]) + float(instance.draft_round_s[s.draft, d])
        if d != e:
            up_bytes = instance.round_bytes + length * instance.token_bytes
            down_bytes = instance.reply_bytes
            up_s = _link_s(instance, d, e, up_bytes)
            down_s = _link_s(instance, e, d, down_bytes)
    verify_s = float(instance.verify_s[s.target, e, length])
    round_s = draft_s + up_s + verify_s + down_s

    def of_seconds(rate: np.ndarray) -> float:
        first = float(rate[d]) * draft_s if length > 0 and rate[d] > 0 else 0.0
        return first + (float(rate[e]) * verify_s if rate[e] > 0 else 0.0)

    energy = of_seconds(instance.power_w) + float(instance.byte_j[e]) * down_bytes
    energy += float(instance.byte_j[d]) * up_bytes if length > 0 else 0.0
    start_s = float(instance.start_s[s.draft, d, s.target, e] if length > 0 else instance.alone_start_s[s.target, e])
    metrics = {
        "time_per_token_s": round_s / tokens + start_s,
        "energy_per_token_j": energy / tokens,
        "cost_per_token": of_seconds(instance.price_per_s) / tokens,
        "tokens_per_round": tokens,
        "round_s": round_s,
    }
    of = {"time": "time_per_token_s", "energy": "energy_per_token_j", "cost": "cost_per_token"}
    objective = math.fsum(weight * metrics[of[name]] for name, weight in instance.weights.items())
    terms = {"draft_s": draft_s, "up_s": up_s, "verify_s": verify_s, "down_s": down_s}
    return Evaluation(objective, metrics, tuple(_speculative_violations(instance, s, metrics)), terms)


def _link_s(instance: Speculative, sender: int, receiver: int, num_bytes: float) -> float:
    rate = float(instance.rate_bytes_per_s[sender, receiver])
    if rate == 0:
        return math.inf
    return float(instance.latency_s[sender, receiver]) + num_bytes / rate


def _speculative_violations(instance: Speculative, s: SpeculativeSolution, metrics: dict[str, float]) -> list[str]:
    slack = 1 + LIMIT_TOLERANCE
    held = {s.target_device: float(instance.target_bytes[s.target])}
    if s.length > 0:
        held[s.draft_device] = held.get(s.draft_device, 0.0) + float(instance.draft_bytes[s.draft])
    broken = [
        f"device {device} needs {need:.9g} bytes, its memory is {float(instance.memory_bytes[device]):.9g}"
        for device, need in held.items()
        if need > instance.memory_bytes[device] * slack
    ]
    if math.isinf(metrics["time_per_token_s"]):
        broken.append(f"a round never ends: a model cannot run on its device, or {s.draft_device} and "
                      f"{s.target_device} have no link")  # fmt: skip
    for name, limit in (
        ("time_per_token_s", instance.max_time_per_token_s),
        ("energy_per_token_j", instance.max_energy_per_token_j),
        ("cost_per_token", instance.max_cost_per_token),
    ):
        if limit is not None and metrics[name] > limit * slack:
            broken.append(f"{name} is {metrics[name]:.9g}, max_{name} is {limit:.9g}")
    return broken


# ── cascades ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _devices(instance: Cascade) -> list[int]:
    return [] if instance.device is None else sorted(set(instance.device.tolist()))


def _cascade(instance: Cascade, solution: CascadeSolution) -> Evaluation:
    models = solution.models
    if not models or list(models) != sorted(set(models)) or models[0] < 0 or models[-1] >= instance.num_models:
        return Evaluation(math.inf, {}, (f"models {models} must rise within 0..{instance.num_models - 1}",))
    N = instance.num_queries
    going = np.ones(N, dtype=bool)
    seconds, cost, right, busy = [], [], [], dict.fromkeys(_devices(instance), 0.0)
    metrics = {f"asked[{m}]": 0.0 for m in range(instance.num_models)}
    for position, m in enumerate(models):
        metrics[f"asked[{m}]"] = float(going.sum()) / N
        seconds += instance.seconds[going, m].tolist()
        cost += instance.cost[going, m].tolist()
        if instance.device is not None:
            spent = instance.seconds if instance.busy_s is None else instance.busy_s
            busy[int(instance.device[m])] += math.fsum(spent[going, m].tolist())
        stops = going.copy()
        if position < len(models) - 1:
            stops &= instance.confidence[:, m] >= solution.thresholds[position]
        right += instance.correct[stops, m].tolist()
        going &= ~stops
    metrics |= {
        "latency_s": math.fsum(seconds) / N, "cost": math.fsum(cost) / N, "accuracy": math.fsum(right) / N,
    }  # fmt: skip
    metrics |= {f"busy_s[{d}]": total / N for d, total in busy.items()}
    of = {"latency": "latency_s", "cost": "cost"}
    objective = math.fsum(weight * metrics[of[name]] for name, weight in instance.weights.items())
    slack, broken = LIMIT_TOLERANCE, []
    if instance.max_models is not None and len(models) > instance.max_models:
        broken.append(f"{len(models)} models are asked, max_models is {instance.max_models}")
    if instance.min_accuracy is not None and metrics["accuracy"] < instance.min_accuracy * (1 - slack):
        broken.append(f"accuracy is {metrics['accuracy']:.9g}, min_accuracy is {instance.min_accuracy:.9g}")
    for conflict in instance.conflicts:
        if set(conflict) <= set(models):
            broken.append(f"models {conflict} are asked together, which conflicts forbid")
    for d, total in busy.items():
        if instance.max_busy_s is not None and total / N > instance.max_busy_s * (1 + slack):
            broken.append(f"device {d} is busy {total / N:.9g} s per query, max_busy_s is {instance.max_busy_s:.9g}")
    for name, limit in (("latency_s", instance.max_latency_s), ("cost", instance.max_cost)):
        if limit is not None and metrics[name] > limit * (1 + slack):
            broken.append(f"{name} is {metrics[name]:.9g}, max_{name} is {limit:.9g}")
    return Evaluation(objective, metrics, tuple(broken))
