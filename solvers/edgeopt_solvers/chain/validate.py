"""Checking what a caller gives to :class:`~edgeopt_solvers.chain.instance.Chain`, and bringing it into one form.

After this, ``compute_s`` is (D, V, L), ``resident_bytes``, ``transient_bytes`` and ``quality_loss`` are (V, L), absent
arrays are zeros (memory: ``inf``, messages: ones, legality: true, medium: -1), infinite budgets are ``None``. Powers
and ``held`` stay ``None`` when not given: energy is meaningless then, and nothing is held. Links of radio media have
their rate with the whole band in ``rate_bytes_per_s``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeopt_solvers.chain.arrays import boolean_array, checked_array, optional_limit, whole_number
from edgeopt_solvers.errors import InstanceError

if TYPE_CHECKING:
    from edgeopt_solvers.chain.instance import Chain

__all__ = ["OBJECTIVES", "normalised"]

OBJECTIVES = ("latency", "throughput", "energy", "quality")
MODES = ("time_shared", "reserved")


def normalised(chain: Chain) -> dict[str, Any]:
    """Return every field of ``chain`` that needs it in its normal form.

    Raises
    ------
    InstanceError
        At the first field that makes no sense.
    """
    compute = checked_array(
        "compute_s", chain.compute_s, [(None, None), (None, None, None)],
        "give seconds >= 0 per device (, variant) and element, inf where an element cannot run", allow_inf=True,
    )  # fmt: skip
    if compute.ndim == 2:
        compute = compute[:, None, :]
    num_devices, num_variants, num_elements = compute.shape
    objective, weights = _objective(chain)
    return {
        "compute_s": compute,
        "reuse": _reuse(chain),
        "objective": objective,
        **_with_media(chain, num_devices, _links(chain, num_devices, num_elements)),
        **(memory := _memory(chain, num_devices, num_variants, num_elements)),
        **_movement(chain, num_devices, num_variants, num_elements, memory),
        **_energy(chain, num_devices, "energy" in weights),
        **_quality(chain, num_variants, num_elements, "quality" in weights),
        **_limits(chain, num_devices, num_elements),
    }


def _reuse(chain: Chain) -> str:
    if chain.reuse not in ("once", "many"):
        raise InstanceError(f"reuse is {chain.reuse!r}; choose 'once' (one stage per device) or 'many'")
    return chain.reuse


def _objective(chain: Chain) -> tuple[str | dict[str, float], set[str]]:
    """Return the objective and the names with a positive weight in it."""
    choices = ", ".join(OBJECTIVES)
    advice = f"choose one of {choices}, or weights over them"
    if isinstance(chain.objective, str):
        if chain.objective not in OBJECTIVES:
            raise InstanceError(f"objective is {chain.objective!r}; {advice}")
        return chain.objective, {chain.objective}
    try:
        given = dict(chain.objective)
    except (TypeError, ValueError):
        raise InstanceError(
            f"objective is {chain.objective!r}; choose one of {choices}, or weights over them"
        ) from None
    weights = {}
    for name, weight in given.items():
        if name not in OBJECTIVES:
            raise InstanceError(f"objective weighs {name!r}; choose among {choices}")
        weights[str(name)] = float(checked_array(f"objective[{name!r}]", weight, [()], "give a finite weight >= 0"))
    if not any(weights.values()):
        raise InstanceError(f"objective is {given!r}; give at least one weight > 0")
    return weights, {name for name, weight in weights.items() if weight > 0}


def _links(chain: Chain, num_devices: int, num_elements: int) -> dict[str, Any]:
    cuts = (num_elements + 1,)
    per_cut = f"for each of the {num_elements + 1} cuts (num_elements + 1)"
    messages = np.ones(cuts) if chain.cut_messages is None else chain.cut_messages
    rate = _off_diagonal(chain.rate_bytes_per_s, num_devices)
    latency = _off_diagonal(chain.latency_s, num_devices)
    square = [(num_devices, num_devices)]
    rate_mend = "give bytes/s >= 0 from row device to column device, 0 where there is no link"
    latency_mend = "give seconds >= 0 per message; for a missing link set its rate to 0"
    source_mend = "name the device that owns input and result, or None"
    source = chain.source
    return {
        "cut_bytes": checked_array("cut_bytes", chain.cut_bytes, [cuts], f"give bytes >= 0 {per_cut}"),
        "cut_messages": checked_array("cut_messages", messages, [cuts], f"give messages >= 0 {per_cut}"),
        "rate_bytes_per_s": checked_array("rate_bytes_per_s", rate, square, rate_mend, allow_inf=True),
        "latency_s": checked_array("latency_s", latency, square, latency_mend),
        "loop_bytes": float(checked_array("loop_bytes", chain.loop_bytes, [()], "give bytes >= 0")),
        "loop_messages": float(checked_array("loop_messages", chain.loop_messages, [()], "give messages >= 0")),
        "source": None if source is None else whole_number("source", source, 0, num_devices - 1, source_mend),
    }


def _with_media(chain: Chain, num_devices: int, links: dict[str, Any]) -> dict[str, Any]:
    """Add the media to the links, and the rates that radio gives them."""
    names = ", ".join(MODES)
    if isinstance(chain.media, str) or not isinstance(chain.media, Sequence):
        raise InstanceError(f"media is {chain.media!r}; give a list with one of {names} for each medium")
    for g, mode in enumerate(chain.media):
        if mode not in MODES:
            raise InstanceError(f"media[{g}] is {mode!r}; choose one of {names}")
    num_media = len(chain.media)
    shape = (num_devices, num_devices)
    raw = np.full(shape, -1.0) if chain.medium is None else chain.medium
    mend = f"give the medium of each link, 0..{num_media - 1}, or -1 for a link of its own (media has {num_media})"
    given = checked_array("medium", _off_diagonal(raw, num_devices, -1.0), [shape], mend, low=-1.0)
    bad = (given != np.floor(given)) | (given >= num_media)
    if bad.any():
        i, j = np.argwhere(bad)[0].tolist()
        raise InstanceError(f"medium[{i}, {j}] is {given[i, j]:g}; {mend}")
    medium = given.astype(np.int64)
    medium.flags.writeable = False
    band = np.zeros(num_media) if chain.band_hz is None or np.size(chain.band_hz) == 0 else chain.band_hz
    if num_media == 0 and np.size(band):
        raise InstanceError("band_hz is given, and media is empty; name the mode of each medium in media")
    if num_media:
        band = checked_array("band_hz", band, [(num_media,)], "give Hz >= 0 per medium, 0 for fixed rates")
    snr = np.zeros(shape) if chain.snr is None else _off_diagonal(chain.snr, num_devices)
    snr = checked_array(
        "snr", snr, [shape], "give the signal-to-noise ratio (no dB) >= 0 of each link, 0 without a link"
    )
    by_radio = np.append(band, 0.0)[medium] > 0
    if by_radio.any():
        if chain.snr is None:
            raise InstanceError("snr is missing, and a medium with band_hz > 0 needs it; give a ratio for each link")
        with np.errstate(over="ignore"):
            full = np.append(band, 0.0)[medium] * np.log1p(snr) / (8.0 * math.log(2.0))
        links["rate_bytes_per_s"] = np.where(by_radio, full, links["rate_bytes_per_s"])
        links["rate_bytes_per_s"].flags.writeable = False
    return {**links, "medium": medium, "media": tuple(chain.media), "band_hz": band, "snr": snr}


def _off_diagonal(value: Any, num_devices: int, diagonal: float = 0.0) -> Any:
    """Return a square matrix with its diagonal set: it is ignored, whatever the caller left there."""
    try:
        matrix = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        return value  # the caller's check says what is wrong with it
    if matrix.shape == (num_devices, num_devices):
        np.fill_diagonal(matrix, diagonal)
    return matrix


def _memory(chain: Chain, num_devices: int, num_variants: int, num_elements: int) -> dict[str, Any]:
    memory = np.full(num_devices, math.inf) if chain.memory_bytes is None else chain.memory_bytes
    mend = "give usable bytes >= 0 per device, inf for unlimited"
    fields = {"memory_bytes": checked_array("memory_bytes", memory, [(num_devices,)], mend, allow_inf=True)}
    per_element = (num_variants, num_elements)
    for name in ("resident_bytes", "transient_bytes"):
        value = getattr(chain, name)
        value = np.zeros(per_element) if value is None else value
        array = checked_array(name, value, [per_element, (num_elements,)], "give bytes >= 0 per (variant,) element")
        fields[name] = np.broadcast_to(array, per_element)
    shared = np.zeros(num_variants) if chain.shared_bytes is None else chain.shared_bytes
    fields["shared_bytes"] = checked_array("shared_bytes", shared, [(num_variants,)], "give bytes >= 0 per variant")
    return fields


def _movement(
    chain: Chain, num_devices: int, num_variants: int, num_elements: int, memory: dict[str, Any]
) -> dict[str, Any]:
    cost = 0.0 if chain.load_cost is None else chain.load_cost
    mend = "give the objective's unit per newly loaded byte >= 0, for each device or for all"
    cost = np.broadcast_to(checked_array("load_cost", cost, [(), (num_devices,)], mend), (num_devices,))
    with np.errstate(over="ignore"):
        most = cost.max() * (memory["resident_bytes"].max(axis=0).sum() + memory["shared_bytes"].sum())
    if not math.isfinite(most):
        raise InstanceError(f"load_cost is up to {cost.max():.6g} per byte, and loading overflows; {mend}")
    if chain.held is None:
        return {"held": None, "load_cost": cost}
    held = np.array(chain.held)
    shape = (num_devices, num_variants, num_elements)
    if held.shape == (num_devices, num_elements) and num_variants == 1:
        held = held.reshape(shape)
    if held.shape != shape or not (held.dtype == np.bool_ or np.isin(held, (0, 1)).all()):
        raise InstanceError(
            f"held must be booleans of shape {shape}, got {held.dtype} of shape {held.shape}; "
            "say what each device already keeps of each variant and element"
        )
    held = held.astype(np.bool_)
    held.flags.writeable = False
    return {"held": held, "load_cost": cost}


def _energy(chain: Chain, num_devices: int, in_objective: bool) -> dict[str, Any]:
    powers = {name: getattr(chain, name) for name in ("power_w", "send_power_w", "receive_power_w")}
    if all(value is None for value in powers.values()):
        if in_objective or chain.max_energy_j is not None:
            what = "the objective 'energy'" if in_objective else "max_energy_j"
            raise InstanceError(f"power_w is missing, and {what} needs it; give watts per device")
        return {}
    zeros = np.zeros(num_devices)
    return {
        name: checked_array(name, zeros if value is None else value, [(num_devices,)], "give watts >= 0 per device")
        for name, value in powers.items()
    }


def _quality(chain: Chain, num_variants: int, num_elements: int, in_objective: bool) -> dict[str, Any]:
    given = chain.quality_loss is not None or chain.handoff_loss is not None
    if not given and (in_objective or chain.max_quality_loss is not None):
        what = "the objective 'quality'" if in_objective else "max_quality_loss"
        raise InstanceError(f"quality_loss is missing, and {what} needs it; give a loss per variant and element")
    shape = (num_variants, num_elements)
    cube = (num_variants, num_variants, num_elements + 1)
    loss = np.zeros(shape) if chain.quality_loss is None else chain.quality_loss
    handoff = np.broadcast_to(np.zeros(()), cube)
    if chain.handoff_loss is not None:
        mend = "give a loss per (from variant, to variant, cut), inf where a hand-off is forbidden"
        handoff = checked_array("handoff_loss", chain.handoff_loss, [cube], mend, low=-math.inf, allow_inf=True)
    mend = "give a finite loss per variant and element"
    return {
        "quality_loss": checked_array("quality_loss", loss, [shape], mend, low=-math.inf),
        "handoff_loss": handoff,
    }


def _limits(chain: Chain, num_devices: int, num_elements: int) -> dict[str, Any]:
    stages = chain.max_stages
    legal = np.ones(num_elements + 1, dtype=bool) if chain.cut_legal is None else chain.cut_legal
    try:
        given = dict({} if chain.pins is None else chain.pins)
    except (TypeError, ValueError):
        raise InstanceError(f"pins is {chain.pins!r}; give a mapping of element to device") from None
    pins = {}
    for element, device in given.items():
        index = whole_number("pins: element", element, 0, num_elements - 1, "elements count from 0")
        pins[index] = whole_number(f"pins[{index}]", device, 0, num_devices - 1, "devices count from 0")
    return {
        **{
            name: optional_limit(name, getattr(chain, name))
            for name in ("max_latency_s", "max_period_s", "max_energy_j")
        },
        "max_quality_loss": optional_limit("max_quality_loss", chain.max_quality_loss, low=-math.inf),
        "max_stages": None if stages is None else whole_number("max_stages", stages, 1, None, "or None for no limit"),
        "min_segment": whole_number("min_segment", chain.min_segment, 1, None, "1 allows every length"),
        "pins": pins,
        "cut_legal": boolean_array("cut_legal", legal, num_elements + 1),
    }
