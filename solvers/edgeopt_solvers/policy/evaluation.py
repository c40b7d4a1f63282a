"""What the checkers of this family return."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Evaluation"]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Cost and feasibility of one solution.

    Attributes
    ----------
    objective
        As the instance asks.
    metrics
        Speculative: ``time_per_token_s``, ``energy_per_token_j``, ``cost_per_token``, ``tokens_per_round``,
        ``round_s``. With a target in stages: ``time_s``, ``ttft_s``, ``start_s``, ``round_s``, ``rounds``,
        ``tokens_per_round``. Cascade: ``latency_s``, ``cost``, ``accuracy`` and ``asked[m]`` (fraction of queries) per
        model, ``busy_s[d]`` per device where they are given.
    violations
        One sentence for each broken rule, with names, amounts and units; empty when feasible.
    terms
        Speculative: seconds of a round by part: ``draft_s``, ``up_s``, ``verify_s``, ``down_s``. With a target in
        stages those of the request: ``start_s``, ``rounds_s``, ``output_s``.
    """

    objective: float
    metrics: dict[str, float]
    violations: tuple[str, ...]
    terms: dict[str, float] = field(default_factory=dict)
