"""The exact engine for every chain feature, for small and medium instances.

Prices give completion bounds (``bounds.py``), label passes of growing width prove the optimum (``search.py``). Where
devices may hold several variants and memory cannot take them all, what they hold is branched on first:

    whatever a plan keeps on device d lies within one of the largest sets of variants that fit d, so the plans of a
    node are those of its children "d holds nothing outside U", one for each such set U.

With every device decided the shared bytes fit, and the bounds of what is left are tight. Nodes are opened in order of
their bound, and close when it meets the incumbent or their labels are exhausted.
"""

from __future__ import annotations

import heapq
import math
import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgeopt_solvers.chain.bounds import Incumbent, Priced, priced_columns, relaxed_path
from edgeopt_solvers.chain.carry import plans_at_sight
from edgeopt_solvers.chain.deadline import OutOfTimeError, bound_at_sight
from edgeopt_solvers.chain.instance import Chain, Solution
from edgeopt_solvers.chain.search import Search
from edgeopt_solvers.chain.tables import Tables
from edgeopt_solvers.errors import UnsupportedError
from edgeopt_solvers.result import Result, Status, relative_gap
from edgeopt_solvers.solve import Options

__all__ = ["solve"]

#: Labels per layer in the first pass (fewer where a layer has many successors), and the factor from pass to pass.
FIRST_WIDTH, NARROW_WIDTH, WIDENING = 200, 20, 12

#: States times elements from which on the first pass is narrow: a plan soon matters more than a proof soon.
MANY_STEPS = 4000

#: Steps from state to state over all cuts that tables are made for: each column takes 8 bytes for one.
MOST_STEPS = 200_000_000

#: Seconds per step that preparing takes at least: where that is beyond the time limit, a plan at sight is all.
PREPARE_S = 1e-7

#: States times elements from which on a plan at sight comes before everything else.
SIGHT = 1000

#: Subgradient steps on the prices: at the root, and at later nodes, which inherit theirs.
ROOT_ITERATIONS, NODE_ITERATIONS = 80, 16

#: Relative distance of a period from its bound that counts as none.
PROVEN = 1e-9

#: Most subsets of variants tried out on one device; beyond that, labels keep track of what is held.
MOST_SUBSETS = 1024

State = tuple[int, int]


@dataclass(order=True, slots=True)
class _Node:
    """Plans that use none of the barred (device, variant) pairs, none of which costs less than ``bound``."""

    bound: float
    number: int
    barred: frozenset[State] = field(compare=False)
    parent: Priced | None = field(compare=False, default=None)


def solve(chain: Chain, options: Options) -> Result:
    """Solve a chain exactly.

    Returns
    -------
    Result
        ``objective`` from the checker; ``bound`` proven; ``statistics``: root bound, nodes, label passes, labels.

    Raises
    ------
    UnsupportedError
        Without a time limit: the tables would not fit into memory.
    """
    limit = options.time_limit_s
    deadline = math.inf if limit is None else time.perf_counter() + limit
    if "reserved_period" in chain.features() and "throughput" in chain.weights:
        return _solve_by_levels(chain, options, deadline)
    run = _Run(chain, options, deadline)
    num_steps = (chain.num_devices * chain.num_variants) ** 2 * chain.num_elements
    if num_steps > MOST_STEPS and limit is None:
        raise UnsupportedError(
            f"{chain.num_devices} devices x {chain.num_variants} variants make {num_steps:.2g} steps over "
            f"{chain.num_elements} elements, and their tables would not fit into memory; give a time limit for "
            "the best plan at sight, leave out devices, or drop what keeps the engines for large chains away: "
            f"{', '.join(sorted(chain.features()))}"
        )
    run.warm_up()
    if num_steps > MOST_STEPS or num_steps * PREPARE_S > deadline - time.perf_counter():
        run.timed_out = True
        return run.report(bound_at_sight(chain))
    return run.report(run.prove())


def _solve_by_levels(chain: Chain, options: Options, deadline: float) -> Result:
    """Least period with reserved media: at a level τ, the shares that transfers need add up, so a plan is searched.

    Every plan found lowers the upper end to its own period, every level without one is a bound (labels at one level
    say nothing about lower ones). Levels halve the bracket and test its upper end in turn: the latter is the proof.
    """
    weight = chain.weights["throughput"]
    best = _Run(chain, options, deadline)
    best.warm_up()
    bound = best.prove(first_plan=True)
    done = best.incumbent.solution is None or best.timed_out
    if best.incumbent.solution is not None:
        bound = best.count["root_bound"]
    halve = True
    while not done and best.incumbent.objective - bound > max(options.gap, PROVEN) * best.incumbent.objective:
        high = best.incumbent.objective
        level = 0.5 * (bound + high) if halve and high - bound > 1e-6 * high else high * (1 - 0.5 * PROVEN)
        run = _Run(chain, options, deadline, level / weight)
        run.incumbent.objective = level
        proven = run.prove(first_plan=True)
        for name, number in run.count.items():
            best.count[name] += 0.0 if name == "root_bound" else number
        if run.incumbent.solution is not None:
            best.incumbent = run.incumbent
        else:
            bound = max(bound, min(proven, level))
        best.timed_out = done = run.timed_out
        halve = not halve
    best.timed_out = best.timed_out and best.incumbent.objective - bound > PROVEN * best.incumbent.objective
    return best.report(bound)


class _Run:
    """One proof: the instance, or (with a level) its plans whose reserved transfers are all over by then."""

    def __init__(self, chain: Chain, options: Options, deadline: float, level: float = math.inf) -> None:
        self.chain = chain
        self.options = options
        self.deadline = deadline
        self.level = level
        self.first_plan = False
        self.incumbent = Incumbent()
        self.count = {"root_bound": -math.inf, "nodes": 0.0, "passes": 0.0, "labels": 0.0}
        self.timed_out = False

    def warm_up(self) -> None:
        """Take the plan that the caller knows; where preparing takes long, also one found at sight."""
        if isinstance(self.options.warm_start, Solution):
            self.incumbent.offer(self.chain, self.options.warm_start)
        elif self.chain.num_devices * self.chain.num_variants * self.chain.num_elements >= SIGHT:
            for plan in plans_at_sight(self.chain, self.deadline):
                self.incumbent.offer(self.chain, plan)
        if self.incumbent.objective >= self.options.cutoff:
            self.incumbent = Incumbent(self.options.cutoff)

    @property
    def satisfied(self) -> bool:
        """Whether any plan was enough, and there is one."""
        return self.first_plan and self.incumbent.solution is not None

    def prove(self, first_plan: bool = False) -> float:
        """Search until no plan is better than the incumbent, or until there is any; return the bound."""
        self.first_plan = first_plan
        floor = bound_at_sight(self.chain)
        nodes = [_Node(floor, 0, frozenset())]
        seen = {frozenset[State]()}
        proven = math.inf  # least bound among what was closed or given up
        while nodes and not self.timed_out and not self.satisfied:
            node = heapq.heappop(nodes)
            if node.bound >= self.cutoff:
                proven = min(proven, node.bound)
                break  # every other node is worse
            try:
                bound, priced, branch = self.explore(node, Tables(self.chain, node.barred, self.level, self.deadline))
            except OutOfTimeError:
                self.timed_out = True
                bound, priced, branch = node.bound, None, []
            if not branch or self.timed_out:
                proven = min(proven, bound)
            for left_out in branch:
                barred = node.barred | left_out
                if barred not in seen:
                    seen.add(barred)
                    heapq.heappush(nodes, _Node(bound, len(seen), barred, priced))
        return min([proven, self.cutoff, *(node.bound for node in nodes)])

    @property
    def cutoff(self) -> float:
        """Value from which on nothing improves the incumbent by more than the gap asked for."""
        value = self.incumbent.objective
        return value if math.isinf(value) else value - max(self.options.gap * (1 - 1e-9), 1e-10) * abs(value)

    def explore(self, node: _Node, tables: Tables) -> tuple[float, Priced | None, list[frozenset[State]]]:
        """Bound a node; return the bound, its prices, and what each child leaves out (no child: it is closed)."""
        self.count["nodes"] += 1
        if not tables.allowed.any(axis=0).all():
            return math.inf, None, []
        # tiny instances are enumerated sooner than priced
        most = ROOT_ITERATIONS if node.parent is None else NODE_ITERATIONS
        iterations = min(most, 10 + tables.num_states * self.chain.num_elements // 2)
        options = self.options
        priced = priced_columns(tables, self.incumbent, options.gap, self.deadline, iterations, node.parent)
        bound = max(node.bound, priced.root)
        if not node.barred:
            self.count["root_bound"] = priced.root
        if bound >= self.cutoff:
            return bound, priced, []
        branch = _branch(tables, relaxed_path(tables, priced.best))
        if branch and node.barred:
            return bound, priced, branch
        search = Search(tables, priced.columns, self.incumbent, options.gap)
        width = FIRST_WIDTH if tables.num_states * self.chain.num_elements < MANY_STEPS else NARROW_WIDTH
        while bound < self.cutoff and not self.satisfied:
            outcome = search.run(width, self.deadline)
            self.count["labels"] += outcome.num_labels
            self.count["passes"] += 1
            bound = max(bound, outcome.bound)
            if outcome.complete:
                bound = max(bound, self.cutoff)
            elif outcome.timed_out or time.perf_counter() > self.deadline:
                self.timed_out = True
                break
            elif branch:
                return bound, priced, branch
            width *= WIDENING
        return bound, priced, []

    def report(self, bound: float) -> Result:
        """Say why it stopped. A bound within rounding of the incumbent is the incumbent."""
        objective, solution = self.incumbent.objective, self.incumbent.solution
        if solution is not None and bound >= objective - 1e-9 * abs(objective):
            bound = objective
        bound = min(bound, objective)
        if solution is None:
            status = Status("time_limit" if self.timed_out else "infeasible", False)
            bound = bound if self.timed_out else self.options.cutoff
        elif bound == objective:
            status = Status("optimal", True)
        else:
            reached = relative_gap(objective, bound) <= self.options.gap
            status = Status("gap_reached" if reached else "time_limit", True)
        return Result(status, objective, bound, solution, "exact", 0.0, statistics=self.count)


def _branch(tables: Tables, path: NDArray[np.intp]) -> list[frozenset[State]]:
    """Pick the device whose shared bytes overflow most, on the path if it can be; return what to leave out there."""
    best: tuple[float, float] = (-math.inf, 0.0)
    choice = np.empty(0, dtype=np.intp)
    for d in np.flatnonzero(tables.tracked):
        mine = np.flatnonzero((tables.device == d) & (tables.shared > 0))
        excess = float(tables.shared[mine].sum() - tables.limit[d])
        if excess <= 0 or 2 ** len(mine) > MOST_SUBSETS:
            continue
        on_path = float(tables.shared[np.intersect1d(mine, path)].sum() - tables.limit[d])
        if (on_path, excess) > best:
            best, choice = (on_path, excess), mine
    if not len(choice):
        return []
    limit = float(tables.limit[tables.device[choice[0]]])
    pairs = [(int(tables.device[s]), int(tables.variant[s])) for s in choice]
    kept = _largest_fitting(tables.shared[choice].tolist(), limit)
    return [frozenset(pair for i, pair in enumerate(pairs) if not subset >> i & 1) for subset in kept]


def _largest_fitting(sizes: list[float], limit: float) -> list[int]:
    """Return, as bit sets, the subsets of ``sizes`` within ``limit`` to which nothing can be added."""
    everything = range(1 << len(sizes))
    total = [sum(size for i, size in enumerate(sizes) if subset >> i & 1) for subset in everything]
    return [
        subset
        for subset in everything
        if total[subset] <= limit and all(subset >> i & 1 or total[subset | 1 << i] > limit for i in range(len(sizes)))
    ]
