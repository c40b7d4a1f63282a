"""The quality of a plan's samples as a table for people."""

from __future__ import annotations

from typing import Any

__all__ = ["quality_text"]

_ROWS = (
    ("frechet", "Fréchet distance", "{:.3f}"),
    ("kernel", "kernel distance, unbiased", "{:.4f}"),
    ("precision", "precision", "{:.3f}"),
    ("recall", "recall", "{:.3f}"),
    ("agreement", "label agreement", "{:.3f}"),
)


def quality_text(found: dict[str, Any]) -> str:
    """Return samples beside real data, and below it what was predicted.

    Parameters
    ----------
    found
        ``PlanQuality.document()``.
    """
    sampled, floor = found["sampled"], found["floor"]
    lines = [f"{'':<27}{'samples':>9}{'real data':>11}"]
    for key, name, form in _ROWS:
        lines.append(f"{name:<27}{form.format(sampled[key]):>9}{form.format(floor[key]):>11}")
    lines.append(f"{sampled['num_samples']} images against {sampled['num_real']} held-out ones, on both sides")
    if found["predicted"] is None:
        lines.append("the plan's model carries no quality: nothing was predicted")
    else:
        spread = "" if found["fit_error"] is None else f"; the profile's own error is {found['fit_error']:.3f}"
        lines.append(
            f"predicted {found['metric']} {found['predicted']:.3f}, sampled {sampled['frechet']:.3f}: "
            f"off by {found['error']:+.3f}{spread}"
        )
    return "\n".join(lines)
