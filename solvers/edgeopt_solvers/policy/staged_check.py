"""What speculative decoding with a target in stages takes, recomputed from its decisions: plain arithmetic."""

from __future__ import annotations

import math

from edgeopt_solvers.policy.evaluation import Evaluation
from edgeopt_solvers.policy.staged import StagedSolution, StagedSpeculative
from edgeopt_solvers.policy.validate import LIMIT_TOLERANCE

__all__ = ["evaluate_staged", "first_s", "pass_s", "round_s", "start_s"]


def evaluate_staged(instance: StagedSpeculative, s: StagedSolution) -> Evaluation:
    """Recompute every metric of a solution and list every rule it breaks."""
    if broken := _broken(instance, s):
        return Evaluation(math.inf, {}, tuple(broken))
    rounds = instance.num_tokens if s.length == 0 else instance.rounds(s.draft, s.length)
    first, start, each = first_s(instance, s), start_s(instance, s), round_s(instance, s, s.length)
    output = instance.sending_s(s.devices[-1], instance.source, instance.result_bytes)
    time_s = start + rounds * each + output
    metrics = {
        "time_s": time_s,
        "ttft_s": first,
        "start_s": start,
        "round_s": each,
        "rounds": rounds,
        "tokens_per_round": instance.num_tokens / rounds,
    }
    violations = _exceeded(instance, s)
    if math.isinf(time_s):
        violations.append("the request never ends: a model cannot run on its device, or a link is missing")
    if instance.max_time_s is not None and time_s > instance.max_time_s * (1 + LIMIT_TOLERANCE):
        violations.append(f"time_s is {time_s:.9g}, max_time_s is {instance.max_time_s:.9g}")
    terms = {"start_s": start, "rounds_s": rounds * each, "output_s": output}
    return Evaluation(time_s, metrics, tuple(violations), terms)


def pass_s(instance: StagedSpeculative, s: StagedSolution, positions: int, riding: float = 0.0) -> float:
    """Seconds of a pass over positions through all stages, and of their hidden states with what rides along."""
    seconds = 0.0
    for k, (device, start, stop) in enumerate(s.segments):
        if k:
            payload = positions * float(instance.position_cut_bytes[start]) + riding
            seconds += instance.sending_s(s.devices[k - 1], device, payload)
        seconds += float(instance.verify_s[device, positions - 1, start:stop].sum())
    return seconds


def round_s(instance: StagedSpeculative, s: StagedSolution, guesses: int) -> float:
    """Seconds of a round that drafts so many tokens, from one reply to the next; 0: the target makes one alone."""
    if guesses == 0:
        return pass_s(instance, s, 1) + instance.sending_s(s.devices[-1], s.devices[0], instance.loop_bytes)
    d, last = s.draft_device, s.devices[-1]
    riding = instance.round_bytes + guesses * instance.token_bytes
    path = instance.sending_s(d, s.devices[0], riding) + pass_s(instance, s, guesses + 1, riding)
    spread = guesses * instance.spread_bytes
    straight = instance.sending_s(d, last, riding + spread) if spread else 0.0
    reply = instance.sending_s(last, d, instance.reply_bytes)
    drafting = guesses * float(instance.draft_s[s.draft, d]) + float(instance.draft_round_s[s.draft, d])
    return drafting + max(path, straight) + reply


def first_s(instance: StagedSpeculative, s: StagedSolution) -> float:
    """Seconds until the last stage has the first token."""
    return _reading(instance, s)[-1]


def start_s(instance: StagedSpeculative, s: StagedSolution) -> float:
    """Seconds until the first round begins: the first token is known, and where it drafts the draft has read too.

    A device that drafts and holds a stage reads for the stage first.
    """
    done = _reading(instance, s)
    if s.length == 0:
        return done[-1]
    d = s.draft_device
    began = (
        done[s.devices.index(d)] if d in s.devices else instance.sending_s(instance.source, d, instance.prompt_bytes)
    )
    ready = began + float(instance.draft_prefill_s[s.draft, d])
    return max(done[-1] + instance.sending_s(s.devices[-1], d, instance.reply_bytes), ready)


def _reading(instance: StagedSpeculative, s: StagedSolution) -> list[float]:
    """Seconds until each stage has read the prompt."""
    done: list[float] = []
    for k, (device, start, stop) in enumerate(s.segments):
        if k == 0:
            arrived = instance.sending_s(instance.source, device, instance.prompt_bytes)
        else:
            arrived = done[-1] + instance.sending_s(s.devices[k - 1], device, float(instance.prefill_cut_bytes[start]))
        done.append(arrived + float(instance.prefill_s[device, start:stop].sum()))
    return done


def _broken(instance: StagedSpeculative, s: StagedSolution) -> list[str]:
    """Decisions that mean nothing."""
    if not instance.min_length <= s.length <= instance.max_length:
        limits = f"{instance.min_length}..{instance.max_length}"
        return [f"the draft length is {s.length}, allowed are {limits}"]
    D, L = instance.num_devices, instance.num_elements
    named = [("devices", device, D) for device in s.devices]
    named += [("draft", s.draft, instance.num_drafts), ("draft_device", s.draft_device, D)] if s.length else []
    broken = [f"{name} {index} is not in 0..{count - 1}" for name, index, count in named if not 0 <= index < count]
    edges = (0, *s.cuts)
    if len(s.cuts) != len(s.devices) or not s.cuts or s.cuts[-1] != L or any(a >= b for a, b in zip(edges, s.cuts)):  # noqa: B905
        broken.append(f"cuts {s.cuts} are no increasing ends of {len(s.devices)} stages of {L} elements")
    if len(set(s.devices)) < len(s.devices):
        broken.append(f"devices {s.devices} hold more than one stage")
    return broken


def _exceeded(instance: StagedSpeculative, s: StagedSolution) -> list[str]:
    """Limits of memory and stages that are not kept."""
    held = {
        device: float(instance.resident_bytes[start:stop].sum() + instance.transient_bytes[start:stop].max())
        for device, start, stop in s.segments
    }
    if s.length:
        held[s.draft_device] = held.get(s.draft_device, 0.0) + float(instance.draft_bytes[s.draft])
    broken = [
        f"device {device} needs {need:.9g} bytes, its memory is {float(instance.memory_bytes[device]):.9g}"
        for device, need in held.items()
        if need > instance.memory_bytes[device] * (1 + LIMIT_TOLERANCE)
    ]
    if instance.max_stages is not None and len(s.cuts) > instance.max_stages:
        broken.append(f"the target has {len(s.cuts)} stages, max_stages is {instance.max_stages}")
    return broken
