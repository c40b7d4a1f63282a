"""Mixtures of experts: the trunk of a model on one device, its experts, with replicas, on all.

In a layer with experts the trunk sends each token's state to the devices that hold what the gate chose, and waits for
all of them. The solver places the experts of all layers (:class:`edgeopt_solvers.placement.Experts`); each device that
can hold the trunk is a case of its own. The solver's objective is linear in what devices serve, ``latency_s`` is the
expectation over what a step asks (:mod:`edgeopt.costs.experts`); ``docs/design/experts.md`` says why there are two.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import ClassVar

import edgeopt
from edgeopt.costs.memory import usable_bytes
from edgeopt.errors import Finding, InputError, NoPlanError
from edgeopt.plan import Plan
from edgeopt.profiles.gates import check_gates, layers_with_experts
from edgeopt.profiles.model import CausalLM
from edgeopt.profiles.problem import Problem, TextWorkload
from edgeopt.strategies.base import Strategy
from edgeopt.strategies.chain import able_devices, wants_quality
from edgeopt.strategies.expert_plans import Placed
from edgeopt.strategies.expert_requests import Request
from edgeopt.strategies.expert_weights import choices, loss, narrowed
from edgeopt.strategies.timeline import lay_out
from edgeopt_solvers import Result
from edgeopt_solvers import placement as family
from edgeopt_solvers.result import relative_gap

__all__ = ["Experts"]


class Experts(Strategy):
    """Plan which device is the trunk and which ones hold, and serve, each expert of each layer."""

    name: ClassVar[str] = "experts"
    #: The last per mille of a proof may take hours.
    patience_s: ClassVar[float | None] = 10.0

    def unfit(self, problem: Problem) -> str | None:
        """Refuse models without experts, and what its cost does not count."""
        model, load, limits = problem.model, problem.workload, problem.constraints
        if not (isinstance(model, CausalLM) and isinstance(load, TextWorkload)):
            return f"experts places the experts of language models; {model.name!r} is a {model.family} model"
        layers = layers_with_experts(model)
        if not layers:
            return f"experts needs a mixture of experts, and no layer of {model.name!r} has `experts:`"
        if len({(layer.experts.num_experts, layer.experts.num_active) for layer in layers if layer.experts}) > 1:
            return f"experts needs as many experts in each layer that has any; those of {model.name!r} differ"
        if load.temperature > 0:
            return f"experts takes the likeliest token each time; workload.temperature is {load.temperature:g}"
        if problem.objective not in ("latency", "throughput") or limits.energy is not None:
            return "experts makes requests short; it weighs no energy and no quality against time (constraints.quality)"
        if limits.deadline is not None or limits.period is not None:
            return "experts finds the shortest request and holds no budget (constraints deadline, period)"
        if limits.pin or limits.first or limits.last or limits.max_stages or limits.min_segment > 1:
            return "experts has no chain of stages (constraints pin, first, last, stages); see constraints.experts"
        if problem.network.media:
            return "experts sends to several devices at once, which it does not count where they share a medium"
        return None

    def cases(self, problem: Problem) -> list[Problem]:
        """One problem for each device that can hold the trunk, and each choice of bits that is worth a try.

        Raises
        ------
        NoPlanError
            No device can, or the formats that are asked for may lose too much.
        """
        options = problem.constraints.experts
        named = [device for device in problem.devices if options.trunk in (None, device.name)]
        can = dict(zip((device.name for device in problem.devices), able_devices(problem), strict=True))
        if not any(can[device.name] for device in named):
            who = f"device {options.trunk!r} may" if options.trunk else "no device may"
            message = f"{who} compute: forbidden, or without a rate for {problem.model.dtype}"
            mend = f"add `compute: {{{problem.model.dtype}: …}}` to its profile, or take it off constraints.forbid"
            raise InputError(Finding("constraints.experts.trunk" if options.trunk else "devices", message, mend))
        able = [device for device in problem.devices if can[device.name]]
        tried = [
            (device, narrowed(problem, device.name, formats))
            for device in named
            if can[device.name]
            for formats in choices(problem, device.name, able)
        ]
        if not tried:
            raise NoPlanError(
                f"no plan exists for {problem.name!r}: quality: constraints.experts.weights {options.weights} may lose "
                f"more than constraints.quality {problem.constraints.quality:g}; raise it, or leave the formats to be "
                "decided"
            )
        fitting = [case for device, case in tried if usable_bytes(device) >= case.costs.trunk_bytes]
        if not fitting:
            short, largest, need = min(
                (case.costs.trunk_bytes - usable_bytes(device), device.name, case.costs.trunk_bytes)
                for device, case in tried
            )
            raise NoPlanError(
                f"no plan exists for {problem.name!r}: memory: the trunk (all but the experts, with its cache) needs "
                f"{need:.9g} bytes, and device {largest!r} has {need - short:.9g}, {short:.6g} too few; add a device "
                f"that holds it (devices.{largest}.memory), or shorten the request (workload.prompt_tokens, batch)"
            )
        return [case.problem for case in fitting]

    def build(self, problem: Problem) -> family.Experts:
        """Build the placement's arrays; the trunk is ``constraints.experts.trunk``, or the first device.

        Raises
        ------
        InputError
            The gates' frequencies do not fit the layers.
        """
        assert isinstance(problem.model, CausalLM)
        findings = [
            Finding(".".join(map(str, ("model", *flaw.path))), flaw.message, flaw.mend)
            for flaw in check_gates(problem.model)
        ]
        if findings:
            raise InputError(findings)
        return Request.of(problem).instance()

    def solution(self, plan: Plan) -> family.ExpertsSolution:
        """Return the placement that the plan names."""
        return Request.of(plan.problem).read(plan.decisions)

    def plan(self, problem: Problem, instance: family.Experts, result: Result) -> Plan:
        """Write a stage for the trunk and for each device with experts, and what travels between them."""
        placed = Placed(Request.of(problem), result.solution)
        load, offset = placed.request.load, placed.request.trunk_s
        metrics = {"ttft_s": placed.ttft_s, "tokens_per_s": load.batch * load.new_tokens / placed.latency_s}
        if load.new_tokens > 1:
            rounds_s = placed.latency_s - placed.ttft_s - placed.request.output_s
            metrics["tpot_s"] = rounds_s / (load.new_tokens - 1)
        metrics["replicas"] = float(placed.solution.replicas.sum())
        weighed = wants_quality(problem) or placed.request.costs.formats
        return Plan(
            edgeopt_version=edgeopt.__version__,
            problem=problem,
            strategy=self.name,
            backend=result.backend,
            status=result.status.reason,
            objective=result.objective + offset,
            bound=result.bound + offset,
            gap=relative_gap(result.objective + offset, result.bound + offset),
            runtime_s=result.runtime_s,
            latency_s=placed.latency_s,
            throughput_per_s=1.0 / placed.latency_s,
            quality=loss(placed.request, placed.share) if weighed else None,
            metrics=metrics,
            decisions=placed.request.write(placed.solution),
            stages=placed.stages(),
            transfers=placed.transfers,
            timeline=lay_out(placed.bars()),
            notes=placed.notes(),
        )

    def describe(self, problem: Problem) -> Callable[[str], str]:
        """Put the names of devices and layers into a message, and say what may help."""
        devices, request = super().describe(problem), Request.of(problem)

        def name(match: re.Match[str]) -> str:
            index = int(match[1])
            layer, expert = divmod(index, request.num_experts) if request.apart else (index, None)
            words = f"layer {request.costs.names[layer]!r}"
            return words if expert is None else f"{words} (expert {expert})"

        def describe(message: str) -> str:
            text = re.sub(r"\bexpert 0 of layer (\d+)", name, message) if request.apart else message
            text = re.sub(r"\blayer (\d+)\b", name, text)
            if message.startswith("memory"):
                largest = max(problem.devices, key=usable_bytes).name
                text += f"; add memory or a device (devices.{largest}.memory), or let devices store it in fewer bits "
                text += "(constraints.experts.weights, or constraints.quality where the model's profile says the loss)"
            return devices(text)

        return describe
