"""transformers: which modules of its pipeline plan each rank holds.

A configuration's ``base_model_pp_plan`` names the children of the base model that run one after the other
(``embed_tokens``, ``layers``, ``norm``) with what goes in and out of each; ``layers`` may be divided between ranks
(``PreTrainedConfig`` in https://github.com/huggingface/transformers, src/transformers/configuration_utils.py). It holds
no ranges: they are in this file, ``layers`` half open, ``modules`` what stands before and after them.
"""

from __future__ import annotations

import json

from edgeopt.export.base import Exported, Names, Split, precision_note, refuse, revisits, tied_note
from edgeopt.export.modules import EMBED, HEAD, NORM, check_class

__all__ = ["TAKES_NAMES", "export"]

#: Ranks follow the stages.
TAKES_NAMES = False


def export(split: Split, names: Names) -> Exported:
    """Return a range of ``model.layers`` for each rank, and the modules around them.

    Raises
    ------
    InputError
        A device holds two segments: a rank holds one range.
    """
    check_class(split)
    refuse("transformers", [revisits(split)])
    ranks = [
        {
            "rank": rank,
            "device": segment.device,
            "modules": [EMBED] * segment.has_embed + [NORM, HEAD] * segment.has_head,
            "layers": [segment.start, segment.stop],
        }
        for rank, segment in enumerate(split.segments)
    ]
    notes = [
        "base_model_pp_plan of the configuration names the modules and no ranges: hand these to what starts the ranks",
        "every rank makes its own rotary tables",
        precision_note(split),
        *tied_note(split),
    ]
    return Exported("transformers", json.dumps({"ranks": ranks}, indent=2) + "\n", tuple(notes), split.devices)
