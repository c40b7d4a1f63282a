"""Label search: one pass of a given width, with completion bounds from prices."""

from __future__ import annotations

from dataclasses import dataclass

from edgeopt_solvers.chain.large import kernels_labels
from edgeopt_solvers.chain.large.clock import Clock
from edgeopt_solvers.chain.large.prices import Completions
from edgeopt_solvers.chain.large.view import Path, View, device_fields

__all__ = ["MOST_BITS", "Pass", "bits_needed", "search"]

#: Bits of the word that records which devices a partial plan has used.
MOST_BITS = 64


@dataclass(frozen=True, slots=True)
class Pass:
    """Outcome of one pass: a better path (or none), the smallest bound among what was cut off, labels, work."""

    cost: float
    path: Path
    cut_off: float
    num_labels: int
    work: int


def bits_needed(view: View) -> int:
    """Bits that the set of devices used takes; more than :data:`MOST_BITS` cannot be searched."""
    return device_fields(view)[2]


def search(
    view: View,
    completions: Completions,
    clock: Clock,
    *,
    incumbent: float,
    tolerance: float,
    width: int,
    work: int = 1 << 62,
    most_labels: int = 4_000_000,
) -> Pass:
    """Search for a plan cheaper than ``incumbent - tolerance``; ``cut_off`` is ``inf`` when none was overlooked."""
    shift, field, _ = device_fields(view)
    cost, cut_off, stages, length, done, num_labels = kernels_labels.label_search(
        view.prefix, view.last_end, view.min_segment, view.link, view.page, view.enter, view.leave, view.copies,
        bool((view.copies > 1).any()), completions.price, shift, field,
        completions.start, completions.stop, completions.value, completions.mask,
        incumbent, tolerance, width, most_labels, work, clock.stop,
    )  # fmt: skip
    path = [(int(device), int(end)) for device, end in stages[:length][::-1]]
    return Pass(float(cost), path, float(cut_off), int(num_labels), int(done))
