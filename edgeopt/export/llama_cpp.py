"""llama.cpp: ``--tensor-split`` over rpc-servers, in the order of ``--rpc``.

With ``--split-mode layer`` the blocks and the output layer are L + 1 slots; slot i is on the first device whose summed
share is above i / (L + 1), so shares that are numbers of slots give exactly the plan's cuts. The shares follow the list
of devices, in which rpc-servers come first, in the order of ``--rpc``; a share that is not given is zero. The input
embedding always is on the CPU of the host that runs llama.cpp (https://github.com/ggml-org/llama.cpp:
docs/multi-gpu.md, tools/rpc/README.md, ``load_tensors`` in src/llama-model.cpp, the list of devices in src/llama.cpp).
An rpc-server listens on port 50052 unless told otherwise.
"""

from __future__ import annotations

from shlex import quote

from edgeopt.errors import Finding
from edgeopt.export.base import Exported, Names, Segment, Split, precision_note, refuse, revisits

__all__ = ["MOST_DEVICES", "TAKES_NAMES", "export"]

#: Devices of the plan may be given their addresses.
TAKES_NAMES = True

#: ``--tensor-split`` is refused with ``llama_max_devices()`` = 16 shares or more (common/arg.cpp, src/llama.cpp).
MOST_DEVICES = 15

_PORT = 50052


def export(split: Split, names: Names) -> Exported:
    """Return the command for the main host; addresses that ``names`` does not give are the devices' names.

    Raises
    ------
    InputError
        A device holds two segments, or there are too many.
    """
    held = [segment for segment in split.segments if _slots(segment)]
    many = Finding(
        "stages", f"{len(held)} devices, and --tensor-split takes {MOST_DEVICES}", "set constraints.max_stages"
    )
    refuse("llama.cpp", [revisits(split), many if len(held) > MOST_DEVICES else None])
    servers = ",".join(_address(names.get(segment.device, segment.device)) for segment in held)
    shares = ",".join(str(_slots(segment)) for segment in held)
    text = (
        f"llama-server -m MODEL.gguf --n-gpu-layers {split.num_blocks + 1} --split-mode layer --tensor-split {shares} "
        f"--rpc {quote(servers)}\n"
    )
    return Exported("llama.cpp", text, tuple(_notes(split, held)), tuple(segment.device for segment in held))


def _slots(segment: Segment) -> int:
    return segment.num_blocks + segment.has_head


def _address(name: str) -> str:
    return name if ":" in name else f"{name}:{_PORT}"


def _notes(split: Split, held: list[Segment]) -> list[str]:
    source = split.plan.problem.constraints.source or split.plan.problem.devices[0].name
    first = split.segments[0].device
    notes = [
        f"run it on '{source}', the source, and an rpc-server with one device on {', '.join(s.device for s in held)}; "
        "in a trusted network only",
        "hidden states pass through the main host between servers, which the plan's transfers do not do",
        precision_note(split),
    ]
    if first != source:
        notes.insert(1, f"llama.cpp computes the embedding on the main host '{source}'; the plan has it on '{first}'")
    if split.model.tied_embeddings:
        notes.append("embedding and head are one matrix: the main host and the last server each hold it")
    return notes
