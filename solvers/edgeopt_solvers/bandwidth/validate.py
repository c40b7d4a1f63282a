"""Checking what a caller gives to :class:`~edgeopt_solvers.bandwidth.instance.Bandwidth`, and filling in defaults.

After this every field is a read-only array: absent rates and signal-to-noise ratios are zeros (they are demanded where
they matter), absent weights ones, absent deadlines and upper share limits ``inf``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeopt_solvers.errors import InstanceError

if TYPE_CHECKING:
    from edgeopt_solvers.bandwidth.instance import Bandwidth

__all__ = ["Array", "normalised", "vector"]

Array = NDArray[np.float64]

#: Positive numbers outside this range are unit errors, and their products would leave the range of floats.
SMALLEST, LARGEST = 1e-40, 1e40

#: Media are numbered without holes worth mentioning; a larger index is a mistake, and would fill the memory.
MOST_MEDIA = 1_000_000


def vector(name: str, value: Any, length: int | None, mend: str, *, inf: bool = False, signed: bool = False) -> Array:
    """Return ``value`` as a read-only (length,) float array.

    Raises
    ------
    InstanceError
        Not numbers, wrong shape, NaN, negative (unless ``signed``), infinite (unless ``inf``), or out of range.
    """
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise InstanceError(f"{name} is not an array of numbers; {mend}") from None
    if array.ndim != 1 or (length is not None and array.shape[0] != length):
        wanted = "one-dimensional" if length is None else f"({length},)"
        raise InstanceError(f"{name} has shape {array.shape}, expected {wanted}; {mend}")
    bad = np.isnan(array) | (array == -math.inf)
    if not inf:
        bad |= array == math.inf
    if not signed:
        size = np.abs(array)
        bad |= (array < 0) | ((size > 0) & (size < SMALLEST)) | ((size > LARGEST) & (size < math.inf))
    if bad.any():
        k = int(np.argmax(bad))
        tiny_or_huge = array[k] > 0 and math.isfinite(array[k])
        hint = f" between {SMALLEST:g} and {LARGEST:g}, or 0" if tiny_or_huge else ""
        raise InstanceError(f"{name}[{k}] is {array[k]}; {mend}{hint}")
    array.flags.writeable = False
    return array


def normalised(given: Bandwidth) -> dict[str, Any]:
    """Return every array field of ``given`` in its normal form.

    Raises
    ------
    InstanceError
        At the first field that makes no sense.
    """
    size = vector("size_bytes", given.size_bytes, None, "give finite bytes >= 0 per flow")
    num_flows = size.shape[0]
    if num_flows == 0:
        raise InstanceError("size_bytes is empty; give at least one flow")

    def per_flow(name: str, default: float, mend: str, inf: bool = False) -> Array:
        value = getattr(given, name)
        return vector(name, np.full(num_flows, default) if value is None else value, num_flows, mend, inf=inf)

    medium, num_media = _media(given, num_flows)
    budget = np.ones(num_media) if given.budget is None else given.budget
    band = np.zeros(num_media) if given.band_hz is None else given.band_hz
    fields: dict[str, Any] = {
        "size_bytes": size,
        "medium": medium,
        "budget": vector("budget", budget, num_media, "give a fraction from 0 to 1 per medium"),
        "band_hz": vector("band_hz", band, num_media, "give Hz per medium, 0 where it has fixed rates"),
        "rate_bytes_per_s": per_flow("rate_bytes_per_s", 0.0, "give bytes/s >= 0 per flow, 0: no link", inf=True),
        "snr": per_flow("snr", 0.0, "give a finite ratio >= 0 per flow (10**(dB/10)), 0: no link"),
        "fixed_s": per_flow("fixed_s", 0.0, "give finite seconds >= 0 per flow"),
        "weight": per_flow("weight", 1.0, "give a finite weight >= 0 per flow"),
        "deadline_s": per_flow("deadline_s", math.inf, "give seconds >= 0 per flow, inf: no deadline", inf=True),
        "min_share": per_flow("min_share", 0.0, "give a fraction >= 0 per flow, 0: no lower limit"),
        "max_share": per_flow("max_share", math.inf, "give a fraction >= 0 per flow, inf: no upper limit", inf=True),
    }
    _refuse_contradictions(given, fields)
    return fields


def _media(given: Bandwidth, num_flows: int) -> tuple[NDArray[np.int64], int]:
    """Return the medium of each flow and the number of media."""
    value = np.zeros(num_flows) if given.medium is None else given.medium
    mend = "give the index of each flow's medium"
    index = vector("medium", value, num_flows, mend, signed=True)
    counts = {}
    for name in ("budget", "band_hz"):
        array = getattr(given, name)
        if array is not None:
            counts[name] = len(vector(name, array, None, "give one number per medium"))
    if len(set(counts.values())) > 1:
        raise InstanceError(f"budget has {counts['budget']} media, band_hz has {counts['band_hz']}; give both for all")
    num_media = next(iter(counts.values()), int(min(index.max(), MOST_MEDIA - 1)) + 1)
    bad = (index != np.floor(index)) | (index < 0) | (index >= num_media)
    if bad.any():
        k = int(np.argmax(bad))
        top = f"0..{num_media - 1}" if counts else f"whole numbers from 0, at most {MOST_MEDIA - 1}"
        raise InstanceError(f"medium[{k}] is {index[k]:g}; {mend}, {top}")
    medium = index.astype(np.int64)
    medium.flags.writeable = False
    return medium, num_media


def _refuse_contradictions(given: Bandwidth, fields: dict[str, Any]) -> None:
    """Refuse fields that are right one by one, and wrong together."""
    over = fields["budget"] > 1
    if over.any():
        g = int(np.argmax(over))
        raise InstanceError(f"budget[{g}] is {fields['budget'][g]:g}; shares are fractions of a medium: at most 1")
    crossed = fields["min_share"] > fields["max_share"]
    if crossed.any():
        k = int(np.argmax(crossed))
        low, high = fields["min_share"][k], fields["max_share"][k]
        raise InstanceError(
            f"min_share[{k}] is {low:g}, above max_share[{k}] = {high:g}; lower the one or raise the other"
        )
    radio = fields["band_hz"][fields["medium"]] > 0
    if given.snr is None and radio.any():
        k = int(np.argmax(radio))
        raise InstanceError(f"snr is missing: flow {k} is on radio medium {fields['medium'][k]}; give a ratio per flow")
    if given.rate_bytes_per_s is None and not radio.all():
        k = int(np.argmin(radio))
        raise InstanceError(
            f"rate_bytes_per_s is missing: flow {k} is on medium {fields['medium'][k]} with fixed rates; "
            "give bytes/s per flow, or band_hz of the medium and snr"
        )
