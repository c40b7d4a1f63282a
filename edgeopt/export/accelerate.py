"""accelerate and transformers: ``device_map``, a mapping from module names to devices of one machine.

A key is a module of the model and covers everything below it; together they must cover every parameter; a value is an
index of an accelerator, or a name such as ``cpu`` or ``cuda:1``
(https://huggingface.co/docs/accelerate/package_reference/big_modeling, ``dispatch_model``; ``check_device_map`` in
https://github.com/huggingface/accelerate, src/accelerate/utils/modeling.py). The file is the mapping itself, as
``json.load`` gives it to ``from_pretrained(…, device_map=…)``.
"""

from __future__ import annotations

import json

from edgeopt.export.base import Exported, Names, Split, precision_note, tied_note
from edgeopt.export.modules import check_class, modules_of

__all__ = ["TAKES_NAMES", "export"]

#: Devices of the plan may be called what the tool calls them.
TAKES_NAMES = True


def export(split: Split, names: Names) -> Exported:
    """Return the mapping; devices that ``names`` does not name are counted in order of the stages.

    A device may hold segments that are apart: a map can say so.
    """
    check_class(split)
    order = list(dict.fromkeys(split.devices))
    # Counted ones must not collide with those that were named by a number.
    taken = set(names.values())
    free = (str(index) for index in range(len(order) + len(taken)) if str(index) not in taken)
    places = {device: names.get(device) or next(free) for device in order}
    mapping = {
        module: int(place) if (place := places[segment.device]).isdigit() else place
        for segment in split.segments
        for module in modules_of(segment)
    }
    notes = [
        "a device map is for one process: its devices are those of one machine, and the plan's links do not apply",
        ", ".join(f"{place} is '{device}'" for device, place in places.items()),
        precision_note(split),
        *tied_note(split),
    ]
    return Exported("accelerate", json.dumps(mapping, indent=2) + "\n", tuple(notes), tuple(order))
