"""``torch.distributed.pipelining``: where ``pipeline(…, split_spec=…)`` cuts a model into stages.

``split_spec`` maps module names to ``SplitPoint.BEGINNING`` (a stage begins before that module) or ``SplitPoint.END``
(https://docs.pytorch.org/docs/stable/distributed.pipelining.html, "Option 2: splitting a model automatically"). The
file holds the names of the enumeration: ``{name: SplitPoint[point] for name, point in file["split_spec"].items()}``.
"""

from __future__ import annotations

import json

from edgeopt.export.base import Exported, Names, Split, precision_note, refuse, revisits, tied_note
from edgeopt.export.modules import check_class, first_module

__all__ = ["TAKES_NAMES", "export"]

#: Ranks follow the stages.
TAKES_NAMES = False


def export(split: Split, names: Names) -> Exported:
    """Return the split points and the device of each rank.

    Raises
    ------
    InputError
        A device holds two segments: single-stage schedules give a rank one stage.
    """
    check_class(split)
    refuse("torch-pipelining", [revisits(split)])
    points = {first_module(segment): "BEGINNING" for segment in split.segments[1:]}
    document = {"split_spec": points, "ranks": list(split.devices)}
    notes = [
        "stage k runs on rank k: start the ranks on the devices in this order",
        "pipeline() traces one forward pass without a cache (use_cache=False): it does not generate with cached keys",
        "rotary tables and the attention mask are made in stage 0 and travel with the hidden states",
        precision_note(split),
        *tied_note(split),
    ]
    return Exported("torch-pipelining", json.dumps(document, indent=2) + "\n", tuple(notes), split.devices)
