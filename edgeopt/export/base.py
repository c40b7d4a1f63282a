"""What every target needs of a plan: which device holds which blocks, and why a plan may not fit a tool's words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from edgeopt.costs.memory import usable_bytes
from edgeopt.errors import Finding, InputError
from edgeopt.plan import Plan
from edgeopt.profiles.model import Architecture, CausalLM

__all__ = [
    "Exported", "Names", "Segment", "Split", "joined", "precision_note", "refuse", "revisits", "split_of", "tied_note",
]  # fmt: skip

#: What the user calls a device of the plan in the other tool.
Names = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Exported:
    """A plan in another tool's words.

    ``text`` is what the tool reads, ``notes`` say what it cannot express and does otherwise, ``devices`` which device
    of the plan each of its places is, in its order.
    """

    target: str
    text: str
    notes: tuple[str, ...]
    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Segment:
    """One stage: blocks ``start`` to ``stop`` (half open, counted without the embedding) on one device."""

    device: str
    start: int
    stop: int
    has_embed: bool
    has_head: bool

    @property
    def num_blocks(self) -> int:
        """How many blocks it holds."""
        return self.stop - self.start

    def __str__(self) -> str:
        parts = ["the embedding"] * self.has_embed
        parts += [f"blocks {self.start} to {self.stop - 1}"] if self.num_blocks else []
        return " and ".join(parts + ["the head"] * self.has_head)


@dataclass(frozen=True, slots=True)
class Split:
    """A language model's blocks over devices, in order of execution."""

    plan: Plan
    model: CausalLM
    architecture: Architecture
    num_blocks: int
    segments: tuple[Segment, ...]

    @property
    def devices(self) -> tuple[str, ...]:
        """Device of each segment."""
        return tuple(segment.device for segment in self.segments)


def split_of(plan: Plan) -> Split:
    """Read a plan as blocks on devices.

    Raises
    ------
    InputError
        It does not split one language model along its blocks, does not know the model's class, or its stages compute
        with different weights, which no target can say.
    """
    model = plan.problem.model
    if plan.strategy != "pipeline" or not plan.is_chain or not isinstance(model, CausalLM):
        message = f"a {plan.strategy} plan of '{model.name}' is no split of one language model along its blocks"
        raise InputError(Finding("strategy", message, "export a plan of `edgeopt solve --strategy pipeline`"))
    if model.architecture is None:
        message = f"model '{model.name}' does not say which class of transformers it is"
        raise InputError(Finding("problem.model.architecture", message, "add `architecture:` to its profile"))
    num_blocks = sum(layer.count for layer in model.layers) - 2
    findings = []
    said = model.architecture.config.get("num_hidden_layers")
    if plan.cuts[-1] != num_blocks + 2 or said not in (None, num_blocks):
        message = (
            f"model '{model.name}' has {num_blocks + 2} elements, its configuration {said} blocks, the plan "
            f"{plan.cuts[-1]} elements; elements are the embedding, the blocks and the head"
        )
        findings.append(Finding("problem.model.layers", message, "let the layers' counts match num_hidden_layers"))
    variants = [stage.variant for stage in plan.stages]
    if len(set(variants)) > 1:
        said_by = ", ".join(f"stage {stage.index} {stage.variant}" for stage in plan.stages)
        message = f"stages compute with different weights ({said_by}), and a tool loads one model in one precision"
        findings.append(Finding("variants", message, "plan with one precision for all devices"))
    if findings:
        raise InputError(findings)
    segments = tuple(
        Segment(
            stage.device, max(stage.start - 1, 0), min(stage.stop - 1, num_blocks), stage.start == 0,
            stage.stop == num_blocks + 2,
        )
        for stage in plan.stages
    )  # fmt: skip
    return Split(plan, model, model.architecture, num_blocks, segments)


def refuse(target: str, findings: Iterable[Finding | None]) -> None:
    """Raise all that a target cannot express at once.

    Raises
    ------
    InputError
        There is anything.
    """
    if found := [Finding(f.field, f"{target} cannot express it: {f.message}", f.mend) for f in findings if f]:
        raise InputError(found)


def revisits(split: Split) -> Finding | None:
    """Say which device holds two separate segments, for tools in which a place holds one."""
    for device in dict.fromkeys(split.devices):
        held = [segment for segment in split.segments if segment.device == device]
        if len(held) > 1:
            message = f"device '{device}' holds {' and, apart from them, '.join(map(str, held))}"
            return Finding("devices", message, "export to accelerate, or plan each device with one segment")
    return None


def joined(split: Split, where: str) -> tuple[Split, list[str], list[Finding]]:
    """Give an embedding or a head that stands alone to the device of the blocks beside it, for tools that do.

    Returns
    -------
    split, notes, findings
        The split with every stage holding a block; what was moved, and what does not fit into memory.
    """
    stages = list(zip(split.segments, (stage.memory_bytes for stage in split.plan.stages), strict=True))
    usable = {device.name: usable_bytes(device) for device in split.plan.problem.devices}
    notes, findings = [], []
    for end, beside in ((0, 1), (-1, -2)):
        alone, more = stages[end]
        if alone.num_blocks or len(stages) == 1:
            continue
        segment, held = stages[beside]
        moved = f"{alone} from '{alone.device}' to '{segment.device}', {where}"
        notes.append(f"it moves {moved}: the plan's latency is not that of this split")
        if held + more > usable[segment.device]:
            message = (
                f"it moves {moved}, which then holds {(held + more) / 1e6:.4g} MB of the "
                f"{usable[segment.device] / 1e6:.4g} MB that plans may use"
            )
            mend = "export to accelerate, which can keep it apart"
            findings.append(Finding(f"stages[{end % len(split.segments)}]", message, mend))
        both = replace(
            segment, has_embed=segment.has_embed or alone.has_embed, has_head=segment.has_head or alone.has_head
        )
        stages[beside] = both, held + more
        del stages[end]
    return replace(split, segments=tuple(segment for segment, _ in stages)), notes, findings


def precision_note(split: Split) -> str:
    """Say in which precision the weights were planned, which no target carries."""
    precision = split.plan.stages[0].variant or split.model.dtype
    return f"planned for weights in {precision}: load the model in it"


def tied_note(split: Split) -> list[str]:
    """Say what becomes of one matrix that two devices need."""
    first, last = split.segments[0].device, split.segments[-1].device
    if not split.model.tied_embeddings or first == last:
        return []
    return [f"embedding and head are one matrix, which '{first}' and '{last}' each hold a copy of"]
