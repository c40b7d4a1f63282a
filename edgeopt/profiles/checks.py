"""What must hold inside a profile and between the parts of a problem, beyond the types of single fields."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from edgeopt.profiles.cascades import check_cascade
from edgeopt.profiles.device import Device
from edgeopt.profiles.gates import check_gates
from edgeopt.profiles.library import known_or_near
from edgeopt.profiles.model import (
    AdditiveQuality,
    CascadedDiffusion,
    CausalLM,
    Diffusion,
    Draft,
    Model,
    TableQuality,
    WeightQuality,
    WholeQuality,
)
from edgeopt.profiles.network import LinkQuality, Network
from edgeopt.profiles.problem import CascadeWorkload, Constraints, Problem, Workload
from edgeopt.profiles.reader import FieldPath, Flaw

__all__ = [
    "check_constraints", "check_device", "check_fit", "check_links", "check_model", "check_names", "check_network",
    "check_objective", "check_problem", "check_timings",
]  # fmt: skip

_PHASES = {
    "causal_lm": ("prefill", "decode", "verify", "expert"),
    "diffusion": ("text_encoder", "step", "slab", "decoder"),
    "cascaded_diffusion": ("text_encoder", "step"),
}


def check_device(device: Device) -> Iterator[Flaw]:
    """Efficiencies by rows fit together; a measured row says what it was measured with, in positive finite seconds."""
    rows, shares = device.efficiency.rows, device.efficiency.compute_by_rows
    if len(rows) != len(shares) or any(a >= b for a, b in pairwise([0, *rows])):
        message = f"{len(rows)} increasing row counts need as many entries in compute_by_rows, which has {len(shares)}"
        yield Flaw(("efficiency", "rows"), message, "list both from 1 row up, for example [1, 16, 256]")
    for i, timing in enumerate(device.timings):
        at = ("timings", i)
        needed = {"prefill": "tokens", "decode": "context", "verify": "tokens", "expert": "tokens", "slab": "rows"}.get(
            timing.phase
        )
        if needed and getattr(timing, needed) is None:
            mend = f"add `{needed}:`, the number of {'latent rows' if needed == 'rows' else 'tokens'}"
            yield Flaw((*at, needed), f"is missing for phase '{timing.phase}'", mend)
        for j, value in enumerate(timing.elements):
            if not (math.isfinite(value) and value >= 0):
                yield Flaw((*at, "elements", j), f"{value} {timing.unit} is not a duration", "write what was measured")


def check_model(model: Model) -> Iterator[Flaw]:
    """Layer names are unique; quality speaks of known variants, in tables that fit together."""
    if isinstance(model, CascadedDiffusion):
        yield from check_cascade(model)
    elif isinstance(model, CausalLM):
        seen: set[str] = set()
        for i, layer in enumerate(model.layers):
            if layer.name in seen:
                yield Flaw(("layers", i, "name"), f"a second layer is called '{layer.name}'", "give it another name")
            seen.add(layer.name)
        for name, draft in model.drafts.items():
            yield from _check_draft(model, name, draft)
        yield from check_gates(model)
        if model.quality is not None:
            yield from _check_weights(model, model.quality)
    elif isinstance(model.quality, AdditiveQuality):
        yield from _check_additive(model.quality, list(model.variants))
    elif isinstance(model.quality, TableQuality):
        yield from _check_table(model.quality, list(model.variants))
    elif isinstance(model.quality, WholeQuality):
        for name in model.quality.quality:
            if name not in model.variants:
                known = list(model.variants)
                yield Flaw(("quality", "quality", name), f"there is no variant '{name}'", known_or_near(name, known))
    if isinstance(model, Diffusion) and "common" in model.variants:
        yield Flaw(
            ("variants", "common"), "'common' is what text encoder and decoder run as", "call the variant otherwise"
        )


def _check_weights(model: CausalLM, quality: WeightQuality) -> Iterator[Flaw]:
    """Losses are of formats that the layers have a size for, one for each element."""
    known = {dtype for layer in model.layers for dtype in layer.weights_by_dtype}
    num_elements = sum(layer.count for layer in model.layers)
    for dtype, loss in quality.loss.items():
        at = ("quality", "loss", dtype)
        if dtype not in known:
            yield Flaw(at, f"no layer says its size in {dtype}", "add it to `weights_by_dtype` of the layers")
        if len(loss) != num_elements:
            message = f"has {len(loss)} losses for {num_elements} elements"
            yield Flaw(at, message, "give one for the embedding, for every block and for the head")


def _check_draft(model: CausalLM, name: str, draft: Draft) -> Iterator[Flaw]:
    """A draft's tokens mean the same to its target, and each temperature is measured once."""
    at = ("drafts", name)
    if draft.tokenizer != model.tokenizer:
        message = f"is '{draft.tokenizer or ''}', that of '{model.name}' is '{model.tokenizer or ''}'"
        yield Flaw((*at, "tokenizer"), message, "draft with a model of the same tokenizer")
    whole = (model.architecture, draft.architecture)
    sizes = [each.config.get("vocab_size") if each else None for each in whole]
    if None not in sizes and sizes[0] != sizes[1]:
        message = f"is {sizes[1]} tokens, '{model.name}' has {sizes[0]}"
        mend = "draft with a model of the same vocabulary"
        yield Flaw((*at, "architecture", "config", "vocab_size"), message, mend)
    temperatures = [entry.temperature for entry in draft.acceptance]
    for i, temperature in enumerate(temperatures):
        if temperature in temperatures[:i]:
            message = f"{temperature:g} is there twice"
            yield Flaw((*at, "acceptance", i, "temperature"), message, "keep one measurement of each temperature")


def _check_additive(quality: AdditiveQuality, variants: list[str]) -> Iterator[Flaw]:
    for name, losses in quality.loss.items():
        if name not in variants:
            yield Flaw(("quality", "loss", name), f"there is no variant '{name}'", known_or_near(name, variants))
        if len(losses) != quality.steps:
            mend = f"give one loss per step: {quality.steps}"
            yield Flaw(("quality", "loss", name), f"has {len(losses)} losses for {quality.steps} steps", mend)


def _check_table(quality: TableQuality, variants: list[str]) -> Iterator[Flaw]:
    for key in ("first", "second"):
        name = getattr(quality, key)
        if name not in variants:
            yield Flaw(("quality", key), f"there is no variant '{name}'", known_or_near(name, variants))
    if quality.first == quality.second:
        yield Flaw(("quality", "second"), f"'{quality.second}' is also the first variant", "name two variants")
    fraction = quality.fraction
    if len(fraction) != len(quality.quality):
        message = f"has {len(quality.quality)} values for {len(fraction)} fractions"
        yield Flaw(("quality", "quality"), message, "give one value per fraction")
    rising = all(a < b for a, b in pairwise(fraction))
    if fraction[0] != 0 or fraction[-1] != 1 or not rising:
        yield Flaw(
            ("quality", "fraction"),
            f"{_few(fraction)} does not increase from 0 to 1",
            "begin with 0, end with 1, increase",
        )


def _few(values: Sequence[float]) -> str:
    text = ", ".join(f"{value:g}" for value in values[:5])
    return f"[{text}{', …' if len(values) > 5 else ''}]"


def check_network(network: Network) -> Iterator[Flaw]:
    """A link has a rate of its own or by radio, joins two different devices, and each direction is given once."""
    if network.default is not None:
        yield from _check_rate(network, network.default, ("default",))
    for i, link in enumerate(network.links):
        yield from _check_rate(network, link, ("links", i))
    given: dict[tuple[str, str], int] = {}
    for i, link in enumerate(network.links):
        at = ("links", i)
        directed = link.from_ is not None or link.to is not None
        if link.between is not None and directed:
            yield Flaw(
                at,
                "has both `between` and `from`/`to`",
                "keep `between` for both directions, or `from` and `to` for one",
            )
            continue
        if link.between is None and (link.from_ is None or link.to is None):
            missing = "`between`" if not directed else "`to`" if link.to is None else "`from`"
            yield Flaw(
                at,
                f"{missing} is missing",
                "write `between: [a, b]` for both directions, or `from: a` and `to: b` for one",
            )
            continue
        a, b = link.between or (str(link.from_), str(link.to))
        if a == b:
            yield Flaw(at, f"joins '{a}' to itself", "remove it; a device needs no link to itself")
            continue
        for pair in [(a, b), (b, a)] if link.between else [(a, b)]:
            if pair in given:
                message = f"'{pair[0]}' to '{pair[1]}' is already given in links[{given[pair]}]"
                yield Flaw(at, message, "keep one link per direction")
                break
            given[pair] = i


def _check_rate(network: Network, link: LinkQuality, at: FieldPath) -> Iterator[Flaw]:
    """A link's medium exists; by radio it has a distance and no rate, and a rate otherwise."""
    if link.medium is not None and link.medium not in network.media:
        message = f"there is no medium '{link.medium}' in the network"
        yield Flaw((*at, "medium"), message, known_or_near(link.medium, list(network.media)))
        return
    if link.medium is not None and network.media[link.medium].radio is not None:
        if link.distance is None:
            yield Flaw((*at, "distance"), f"is missing, and medium '{link.medium}' is radio", "add `distance: 10 m`")
        if link.rate is not None:
            message = f"is given, and medium '{link.medium}' is radio, which computes it"
            yield Flaw((*at, "rate"), message, "remove it, or the medium's `radio:`")
        return
    if link.rate is None:
        yield Flaw((*at, "rate"), "is missing", "add `rate: 50 Mbit/s`, or a `medium:` with a `radio:`")
    for key in ("distance", "transmit_power"):
        if getattr(link, key) is not None:
            yield Flaw((*at, key), "is given, and the link is not by radio", "remove it, or name a radio `medium:`")


def check_names(names: Sequence[str]) -> Iterator[tuple[int, str, str]]:
    """Yield index, message and mend of each device whose name another has already."""
    for i, name in enumerate(names):
        if name in names[:i]:
            mend = "give it another `name:`, or write the device once with `count:`"
            yield i, f"a device called '{name}' is there already", mend


def check_links(network: Network, names: Sequence[str]) -> Iterator[Flaw]:
    """Links name devices of the problem."""
    for i, link in enumerate(network.links):
        ends = (
            (("from",), link.from_),
            (("to",), link.to),
            *((("between", k), end) for k, end in enumerate(link.between or ())),
        )
        for key, name in ends:
            if name is not None and name not in names:
                yield Flaw(
                    ("links", i, *key), f"there is no device '{name}' in the problem", known_or_near(name, names)
                )


def check_constraints(constraints: Constraints, names: Sequence[str]) -> Iterator[Flaw]:
    """Pins, the source and forbidden devices are devices of the problem."""
    single: list[tuple[tuple[str, ...], str | None]] = [
        ((key,), getattr(constraints, key)) for key in ("source", "first", "last")
    ]
    pinned = [(("pin", element), device) for element, device in constraints.pin.items()]
    single.append((("experts", "trunk"), constraints.experts.trunk))
    single += [(("experts", "weights", name), name) for name in constraints.experts.weights or ()]
    forbidden = [(("forbid", i), device) for i, device in enumerate(constraints.forbid)]
    for path, name in [*single, *pinned, *forbidden]:
        if name is not None and name not in names:
            yield Flaw(
                ("constraints", *path), f"there is no device '{name}' in the problem", known_or_near(name, names)
            )
    for path, name in [*single[1:], *pinned]:
        if name is not None and name in constraints.forbid:
            yield Flaw(
                ("constraints", *path), f"'{name}' is forbidden", "take it off `forbid:`, or choose another device"
            )
    limits = constraints.drafting
    if limits.min_length > limits.max_length:
        message = f"is {limits.min_length} tokens, max_length is {limits.max_length}"
        yield Flaw(("constraints", "drafting", "min_length"), message, "let it not exceed max_length")
    if names and set(names) <= set(constraints.forbid):
        yield Flaw(("constraints", "forbid"), "no device is left", "allow at least one device")


def check_fit(workload: Workload, model: Model) -> Iterator[Flaw]:
    """A language model writes text, a diffusion model makes images, a cascade has steps for each of its levels."""
    what, wanted, example = _FAMILY[model.family]
    if workload.kind != wanted:
        message = f"a workload of {workload.kind} does not fit '{model.name}', which is {what}"
        yield Flaw(("workload",), message, f"write `workload: {example}`")
    elif isinstance(workload, CascadeWorkload) and isinstance(model, CascadedDiffusion):
        names = [level.name for level in model.levels]
        if workload.steps is not None and len(workload.steps) != len(names):
            message = f"{len(workload.steps)} numbers of steps for {len(names)} levels"
            yield Flaw(("workload", "steps"), message, f"give one for each of {', '.join(names)}")


#: What a family is, the kind of workload that fits it, and how to write one.
_FAMILY = {
    "causal_lm": ("a language model", "text", "{prompt_tokens: 128, new_tokens: 64}"),
    "diffusion": ("a diffusion model", "image", "{steps: 20, images: 1}"),
    "cascaded_diffusion": ("a cascade of diffusion models", "cascade", "{kind: cascade, steps: [20, 10], images: 1}"),
}


def check_objective(
    objective: str | Mapping[str, float], limits: Constraints, devices: Sequence[Device], model: Model
) -> Iterator[Flaw]:
    """What is asked for can be computed: energy needs busy power, quality a model that carries it."""
    wanted = (
        {objective} if isinstance(objective, str) else {metric for metric, weight in objective.items() if weight > 0}
    )
    if "energy" in wanted or limits.energy is not None:
        reason = "objective `energy`" if "energy" in wanted else "`constraints.energy`"
        for i, device in enumerate(devices):
            if device.power is None or device.power.busy is None:
                message = f"is missing for device '{device.name}', and {reason} needs it"
                yield Flaw(
                    ("devices", i, "power", "busy"),
                    message,
                    "add `power: {busy: 15 W}` with its source, or drop energy",
                )
    if wanted & {"ttft", "tpot"} and not isinstance(model, CausalLM):
        message = f"'{objective}' is about tokens, and '{model.name}' is {_FAMILY[model.family][0]}"
        yield Flaw(("objective",), message, "use latency or throughput")
    if model.quality is not None:
        return
    for path, asked in (
        (("objective",), "quality" in wanted),
        (("constraints", "quality"), limits.quality is not None),
    ):
        if asked:
            mend = "use another objective or model, or add a measured `quality:` to the model"
            yield Flaw(path, f"model '{model.name}' carries no quality", mend)


def check_timings(device: Device, model: Model) -> Iterator[Flaw]:
    """Measured rows of the problem's model have one value per chain element and speak of its phases and variants."""
    variants = _variants(model)
    for i, timing in enumerate(device.timings):
        if timing.model != model.name:
            continue
        at = ("timings", i)
        phases = _PHASES[model.family]
        if timing.phase not in phases:
            message = f"'{timing.phase}' is no phase of '{model.name}', {_FAMILY[model.family][0]}"
            yield Flaw((*at, "phase"), message, f"use {' or '.join(phases)}")
            continue
        whole = not isinstance(model, CausalLM) or timing.phase in ("verify", "expert")
        expected = 1 if whole else sum(layer.count for layer in model.layers)
        if len(timing.elements) != expected:
            message = f"has {len(timing.elements)} values, '{model.name}' has {expected} in phase '{timing.phase}'"
            mend = (
                "give 1, that of the whole pass or of one expert"
                if whole
                else f"give {expected}, one per chain element"
            )
            yield Flaw((*at, "elements"), message, mend)
        if timing.phase in ("step", "slab") and timing.variant not in variants:
            missing = f"is missing for phase '{timing.phase}'"
            message = f"there is no variant '{timing.variant}'" if timing.variant else missing
            yield Flaw((*at, "variant"), message, known_or_near(timing.variant or "", variants))


def _variants(model: Model) -> list[str]:
    """Names of a model's denoisers, of all levels."""
    if isinstance(model, CascadedDiffusion):
        return [name for level in model.levels for name in level.variants]
    return list(model.variants) if isinstance(model, Diffusion) else []


def check_problem(problem: Problem) -> Iterator[Flaw]:
    """Everything above for a whole problem, with paths from its root."""
    names = [device.name for device in problem.devices]
    for i, message, mend in check_names(names):
        yield Flaw(("devices", i, "name"), message, mend)
    for i, device in enumerate(problem.devices):
        for flaw in (*check_device(device), *check_timings(device, problem.model)):
            yield flaw._replace(path=("devices", i, *flaw.path))
    yield from (flaw._replace(path=("model", *flaw.path)) for flaw in check_model(problem.model))
    for flaw in (*check_network(problem.network), *check_links(problem.network, names)):
        yield flaw._replace(path=("network", *flaw.path))
    yield from check_constraints(problem.constraints, names)
    yield from check_fit(problem.workload, problem.model)
    yield from check_objective(problem.objective, problem.constraints, problem.devices, problem.model)
