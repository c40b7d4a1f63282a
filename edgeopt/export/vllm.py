"""vLLM: ``VLLM_PP_LAYER_PARTITION``, the number of blocks of each pipeline rank.

Integers separated by commas, as many as ``--pipeline-parallel-size``, whose sum is ``num_hidden_layers``; rank k gets
the blocks after those of the ranks before it (``get_pp_indices`` in https://github.com/vllm-project/vllm,
vllm/distributed/utils.py; the variable in vllm/envs.py). The embedding is on the first rank, norm and head on the last.
"""

from __future__ import annotations

from shlex import quote

from edgeopt.export.base import Exported, Names, Split, joined, precision_note, refuse, revisits, tied_note

__all__ = ["TAKES_NAMES", "export"]

#: Ranks follow the stages.
TAKES_NAMES = False


def export(split: Split, names: Names) -> Exported:
    """Return the command with the variable before it.

    Raises
    ------
    InputError
        A device holds two segments, or an embedding that stands alone does not fit beside the blocks.
    """
    refuse("vllm", [revisits(split)])
    split, moved, findings = joined(split, "where vLLM computes it")
    refuse("vllm", findings)
    counts = ",".join(str(segment.num_blocks) for segment in split.segments)
    model = quote(split.architecture.checkpoint or "MODEL")
    ranks = len(split.segments)
    text = f"VLLM_PP_LAYER_PARTITION={counts} vllm serve {model} --pipeline-parallel-size {ranks}\n"
    notes = [
        *moved,
        "rank k runs stage k: " + ", ".join(f"{rank} on '{device}'" for rank, device in enumerate(split.devices)),
        "set the variable on every machine; vLLM needs a device that it supports on each",
        precision_note(split),
        *tied_note(split),
    ]
    return Exported("vllm", text, tuple(notes), split.devices)
