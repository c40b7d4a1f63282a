"""Why not otherwise: what another decision would cost, or which limit it breaks.

The decision is put on the plan's own problem as pins of elements to devices and as variants that are allowed, and
the rest is decided again: the price is that of the best plan which does so. A technique that is no chain has no
elements to put anywhere: there a device can be taken away, and no more.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import numpy as np

from edgeopt import planner
from edgeopt.errors import Finding, InputError, NoPlanError, TimeLimitError
from edgeopt.plan import Plan
from edgeopt.profiles.library import nearest
from edgeopt.questions.solving import solve_undiagnosed
from edgeopt.questions.terms import element_names, variant_names
from edgeopt.strategies import Strategy
from edgeopt_solvers import Result, Status
from edgeopt_solvers import solve as solve_instance
from edgeopt_solvers.chain import Chain, Solution
from edgeopt_solvers.chain.through import least_through
from edgeopt_solvers.result import relative_gap

__all__ = ["Answer", "Wish", "parse", "why_not"]

EXAMPLES = "'stage 1 on phone', 'block.* on phone', '4:8 on phone', 'step.0 with small', 'phone' or 'without phone'"

#: Relative gap up to which the best of several plans counts as proven.
PROVEN = 1e-9

_WISH = re.compile(r"(?P<what>.+?)(?: on (?P<device>.+?))?(?: with (?P<variant>.+?))?")


@dataclass(frozen=True, slots=True)
class Wish:
    """What should be decided otherwise.

    Attributes
    ----------
    elements
        Indices of the elements it is about; empty: any of them (``device`` gets at least one) or all of them
        (``without``).
    device, variant
        Indices; ``None`` where the wish leaves it open.
    without
        The device gets nothing.
    """

    elements: tuple[int, ...]
    device: int | None = None
    variant: int | None = None
    without: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What a wish would cost.

    Attributes
    ----------
    question
        As it was asked.
    plan
        The best plan that grants it, ``None`` where there is none.
    price
        Its objective minus that of the plan in question; 0: it is as good; ``inf``: impossible.
    bound
        Proven lower bound of all plans that grant it, where the plan's own ``bound`` is that of all plans.
    proven
        Whether both are optima; if not, the price is that of the best plan found in time.
    broken
        Which limit breaks and by how much, or why nothing was found; empty with a plan.
    granted
        The plan in question does so already.
    """

    question: str
    plan: Plan | None
    price: float
    bound: float
    proven: bool
    broken: str = ""
    granted: bool = False


def parse(question: str, plan: Plan) -> Wish:
    """Read a wish about a plan.

    Raises
    ------
    InputError
        It is no wish, or names a stage, an element, a device or a variant that is not there.
    """
    text = question.strip()
    names = [device.name for device in plan.problem.devices]
    if text.startswith("without "):
        return Wish((), device=_index(text.removeprefix("without "), names, "device"), without=True)
    if not plan.is_chain and text not in {stage.device for stage in plan.stages}:
        message = f"{plan.strategy} places no elements of a chain, so nothing can be put on a device"
        raise _refused(message, f"ask what a device is worth, as in 'without {plan.stages[0].device}'")
    if text in names:
        return Wish((), device=names.index(text))
    match = _WISH.fullmatch(text)
    if match is None or not (match["device"] or match["variant"]):
        raise _refused(f"{question!r} says neither on which device nor with which variant", f"write {EXAMPLES}")
    device = _index(match["device"], names, "device") if match["device"] else None
    variants = variant_names(plan.problem)
    variant = 1 + _index(match["variant"], variants, "variant") if match["variant"] else None
    return Wish(tuple(_elements(match["what"], plan)), device, variant)


def _elements(text: str, plan: Plan) -> Iterator[int]:
    names = element_names(plan.problem, plan.strategy)
    if stage := re.fullmatch(r"stage (\d+)", text):
        k = int(stage[1])
        if k >= len(plan.stages):
            raise _refused(f"there is no stage {k}", f"the plan has stages 0 to {len(plan.stages) - 1}")
        return iter(range(plan.stages[k].start, plan.stages[k].stop))
    if span := re.fullmatch(r"(\d+):(\d+)", text):
        start, stop = int(span[1]), int(span[2])
        if not start < stop <= len(names):
            raise _refused(f"'{text}' is no range of elements", f"give start:stop within 0:{len(names)}")
        return iter(range(start, stop))
    matched = [i for i, name in enumerate(names) if fnmatchcase(name, text) or str(i) == text]
    if not matched:
        mend = f"elements are {', '.join(names[:3])} … {names[-1]}; or write {EXAMPLES}"
        raise _refused(f"no element is called '{text}'", mend)
    return iter(matched)


def _index(name: str, known: list[str], kind: str) -> int:
    if name not in known:
        near = nearest(name, known)
        mend = f"did you mean {near}?" if near else f"known: {', '.join(known) or 'none'}"
        raise _refused(f"there is no {kind} '{name}' in the problem", mend)
    return known.index(name)


def _refused(message: str, mend: str) -> InputError:
    return InputError(Finding("--why-not", message, mend))


def why_not(plan: Plan, question: str, time_limit_s: float | None = None) -> Answer:
    """Say what it would cost to decide otherwise, or which limit that breaks.

    Raises
    ------
    InputError
        The question cannot be read (:func:`parse`).
    """
    wish = parse(question, plan)
    technique = planner.choose_strategy(plan.problem, plan.strategy)
    settles = technique.settles(plan.problem)
    if settles and not wish.without:
        message = "chunks of a prompt overlap, which no price of a stage's place knows"
        raise _refused(message, "ask 'without DEVICE', or leave workload.prefill_chunk out")
    if settles or not plan.is_chain:
        return _without(plan, question, wish, technique, time_limit_s)
    chain = technique.build(plan.problem)
    if _grants(plan, wish, chain):
        return Answer(question, plan, 0.0, plan.bound, plan.status == "optimal", granted=True)
    conflict = _conflict(plan, chain, wish)
    if conflict:
        return Answer(question, None, math.inf, math.inf, True, conflict)
    result = _best(_granting(chain, wish, technique.solution(plan), time_limit_s), time_limit_s)
    if result.solution is None:
        if result.status.reason != "infeasible":
            return Answer(question, None, math.inf, -math.inf, False, "no plan that does so was found in the time")
        broken = technique.describe(plan.problem)(
            _reason(result.message, chain, element_names(plan.problem, plan.strategy))
        )
        return Answer(question, None, math.inf, math.inf, True, broken)
    optimal = result.status.reason == "optimal"
    # As a plan of the problem it is one among all: optimal only where the wish costs nothing.
    other = technique.plan(plan.problem, chain, replace(result, status=Status("gap_reached", True)))
    price, bound = other.objective - plan.objective, min(plan.bound, other.objective)
    gap = relative_gap(other.objective, bound)
    return Answer(
        question, other.model_copy(update={"bound": bound, "gap": gap}), price, other.bound,
        optimal and plan.status == "optimal",
    )  # fmt: skip


def _without(plan: Plan, question: str, wish: Wish, technique: Strategy, time_limit_s: float | None) -> Answer:
    """Take a device away from a technique that is no chain, and plan again."""
    problem = plan.problem
    assert wish.device is not None
    name = problem.devices[wish.device].name
    if (name in {stage.device for stage in plan.stages}) is not wish.without:
        return Answer(question, plan, 0.0, plan.bound, plan.status == "optimal", granted=True)
    limits = problem.constraints
    forbidden = limits.model_copy(update={"forbid": [*limits.forbid, name]})
    try:
        other = planner.solve_with(
            technique, problem.model_copy(update={"constraints": forbidden}), time_limit_s=time_limit_s
        )
    except TimeLimitError:
        return Answer(question, None, math.inf, -math.inf, False, "no plan that does so was found in the time")
    except (NoPlanError, InputError) as error:
        return Answer(question, None, math.inf, math.inf, True, str(error))
    bound = min(plan.bound, other.objective)
    proven = other.status == "optimal" == plan.status
    changes = {"problem": problem, "status": "gap_reached", "bound": bound, "gap": relative_gap(other.objective, bound)}
    granting = other.model_copy(update=changes)
    return Answer(question, granting, other.objective - plan.objective, other.bound, proven)


def _best(chains: list[tuple[float, Chain]], time_limit_s: float | None) -> Result:
    """Return the best plan of several chains, recomputed; the reason why there is none is that of the first.

    Chains come with a lower bound of their plans, the smallest first: once it is no smaller than the best value at
    hand, nothing better follows, and until then only what is better has to be found.
    """
    deadline = math.inf if time_limit_s is None else time.perf_counter() + time_limit_s

    def left_s() -> float | None:
        return None if time_limit_s is None else max(deadline - time.perf_counter(), 1e-3)

    if len(chains) == 1:
        return solve_instance(chains[0][1], time_limit_s=left_s())
    best, start, bound = 0, None, math.inf
    for k, (least, chain) in enumerate(chains):
        cutoff = math.inf if start is None else start.objective
        if start is not None and least >= cutoff - PROVEN * abs(cutoff):
            bound = min(bound, max(least, cutoff))
            break
        found = solve_undiagnosed(chain, left_s(), cutoff=cutoff)
        bound = min(bound, found.bound)
        if found.solution is not None and (start is None or found.objective < start.objective):
            best, start = k, found
    result = solve_instance(chains[best][1], time_limit_s=left_s(), warm_start=start)
    if result.solution is None:
        return result if math.isinf(bound) and bound > 0 else replace(result, status=Status("time_limit", False))
    bound = min(bound, result.objective)
    proven = relative_gap(result.objective, bound) <= PROVEN
    return replace(result, status=Status("optimal" if proven else "time_limit", True), bound=bound)


def _grants(plan: Plan, wish: Wish, chain: Chain) -> bool:
    if not wish.elements:
        return (wish.device in plan.devices) is not wish.without
    lengths = np.diff([0, *plan.cuts])
    device, variant = np.repeat(plan.devices, lengths), np.repeat(plan.variants, lengths)
    varied = _varied(wish, chain)
    there = wish.device is None or bool((device[list(wish.elements)] == wish.device).all())
    return there and (wish.variant is None or bool(varied and (variant[varied] == wish.variant).all()))


def _varied(wish: Wish, chain: Chain) -> list[int]:
    """Elements of the wish that can run with its variant at all: encoders and decoders have none."""
    if wish.variant is None:
        return []
    return [e for e in wish.elements if np.isfinite(chain.compute_s[:, wish.variant, e]).any()]


def _conflict(plan: Plan, chain: Chain, wish: Wish) -> str:
    """Say which choice of the problem rules the wish out before anything is solved; empty where none does."""
    limits, names = plan.problem.constraints, [device.name for device in plan.problem.devices]
    if wish.variant is not None and not _varied(wish, chain):
        variant = variant_names(plan.problem)[wish.variant - 1]
        return f"none of these elements can run with {variant}, or its quality is not in the profile"
    if wish.device is None or wish.without:
        return ""
    if names[wish.device] in limits.forbid:
        return f"constraints.forbid: the problem forbids {names[wish.device]}"
    if not np.isfinite(chain.compute_s[wish.device]).any():
        dtype = plan.problem.model.dtype
        return f"{names[wish.device]} cannot compute: its profile has no {dtype} rate and no timings of the model"
    elements = element_names(plan.problem, plan.strategy)
    pinned = [e for e in wish.elements if chain.pins.get(e, wish.device) != wish.device]
    if pinned:
        return f"constraints: {elements[pinned[0]]} is pinned to {names[chain.pins[pinned[0]]]}"
    return ""


def _granting(chain: Chain, wish: Wish, known: Solution, time_limit_s: float | None) -> list[tuple[float, Chain]]:
    """Return chains whose plans together are all plans that grant the wish, by rising lower bound of their plans.

    ``known`` is the plan in question, ``time_limit_s`` for the bounds alone.
    """
    if wish.without:
        compute_s = chain.compute_s.copy()
        compute_s[wish.device] = np.inf
        return [(-math.inf, replace(chain, compute_s=compute_s))]
    if not wish.elements and wish.device is not None:
        device = wish.device
        able = np.isfinite(chain.compute_s[device]).any(axis=0)
        free = [e for e in np.flatnonzero(able).tolist() if chain.pins.get(e, device) == device]
        least = (
            least_through(chain, device, known, time_limit_s)
            if len(free) > 1
            else np.full(chain.num_elements, -math.inf)
        )
        pinned = [(float(least[e]), replace(chain, pins={**chain.pins, e: device})) for e in free]
        return sorted(pinned, key=lambda entry: entry[0])
    pins = {**chain.pins, **({} if wish.device is None else dict.fromkeys(wish.elements, wish.device))}
    compute_s = chain.compute_s.copy()
    others = [v for v in range(chain.num_variants) if v != wish.variant]
    compute_s[np.ix_(range(chain.num_devices), others, _varied(wish, chain))] = np.inf
    return [(-math.inf, replace(chain, pins=pins, compute_s=compute_s))]


def _reason(message: str, chain: Chain, names: list[str]) -> str:
    """Return what a diagnosis names, without the wish itself, and with the elements' names."""
    clauses = message.split("; or ")
    own = [clause for clause in clauses if not _is_wish(clause, chain)] or clauses
    named = [
        re.sub(r"\belement (\d+)\b", lambda m: names[int(m[1])] if int(m[1]) < len(names) else m[0], clause)
        for clause in own
    ]
    return "; or ".join(named)


def _is_wish(clause: str, chain: Chain) -> bool:
    """Whether a clause says no more than that the wish could be given up."""
    return clause.startswith("compute_s is inf") or (clause.startswith("pins:") and not chain.pins)
