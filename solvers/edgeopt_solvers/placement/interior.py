"""A primal-dual interior point for queues: linear costs, linear rows, and ρ / (1 − ρ) in the load of every queue.

    min  cᵀx + η Σ_s h(ρ_s),   h(ρ) = ρ / (1 − ρ),   ρ_s = Σ_{j at s} b_j x_j <= r,     A x = rhs,   x >= 0.

Each x_j loads at most one queue, so that the Hessian is a diagonal plus one rank-one term per queue, inverted in
closed form (Sherman and Morrison); what remains per step is one dense system with as many rows as A. The start need
not satisfy A x = rhs. Steps follow the central path with Mehrotra's choice of its parameter.
"""

from __future__ import annotations

# ruff: noqa: B023  (functions of a step are used within that step)
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt_solvers.chain.arrays import Array

__all__ = ["Point", "Program", "minimise"]

MOST_STEPS = 120

#: Part of the way to the nearest limit that a step may go.
BACK = 0.995


@dataclass(frozen=True, slots=True)
class Program:
    """The arrays of the module docstring; ``queue`` (n,) is the queue that each variable loads, −1: none.

    ``rows`` is a dense array or a scipy.sparse matrix, (m, n).
    """

    cost: Array
    queue: NDArray[np.int64]
    weight: Array
    num_queues: int
    most: float
    rows: Any
    rhs: Array
    unit: float = 1.0  # η

    def load(self, x: Array) -> Array:
        """Return ρ, (num_queues,)."""
        counts = self.queue >= 0
        total: Array = np.bincount(self.queue[counts], (self.weight * x)[counts], minlength=self.num_queues).astype(
            np.float64
        )
        return total


@dataclass(frozen=True, slots=True)
class Point:
    """Values, prices of the rows and of the queues, and whether A x = rhs and optimality hold to the tolerance."""

    x: Array
    row_price: Array
    queue_price: Array
    converged: bool
    residual: float


def minimise(program: Program, start: Array, tolerance: float, stop_at: float) -> Point:
    """Follow the central path from ``start`` > 0 (loads below the limit) to a relative gap of ``tolerance``."""
    with np.errstate(all="ignore"):  # a path that leaves the range of floats ends; its best point counts
        return _minimise(program, start, tolerance, stop_at)


def _minimise(p: Program, start: Array, tolerance: float, stop_at: float) -> Point:
    n = len(p.cost)
    dense = isinstance(p.rows, np.ndarray)
    transposed = p.rows.T if dense else p.rows.T.tocsr()
    at = np.maximum(p.queue, 0)
    b = np.where(p.queue >= 0, p.weight, 0.0)
    capped = p.most < 1

    def spread(per_queue: Array) -> Array:
        out: Array = b * per_queue[at]
        return out

    def gather(values: Array) -> Array:
        return np.bincount(at, b * values, minlength=p.num_queues).astype(np.float64)

    x, y = start.copy(), np.zeros(len(p.rhs))
    rho = gather(x)
    size = max(1.0, float(np.abs(p.cost).max(initial=0.0)), p.unit * float((rho / (1 - rho)).sum()) / max(n, 1))
    z = np.maximum(p.cost + spread(p.unit / (1 - rho) ** 2), 1e-3 * size)
    q = np.full(p.num_queues, 1e-3 * size) if capped else np.zeros(p.num_queues)
    scale_p = 1 + float(np.abs(p.rhs).max(initial=0.0))
    best = Point(x, y, p.unit / (1 - rho) ** 2, False, np.inf)
    for _ in range(MOST_STEPS):
        if time.perf_counter() > stop_at:
            break
        slope, curve = p.unit / (1 - rho) ** 2, 2 * p.unit / (1 - rho) ** 3
        t = p.most - rho if capped else np.ones(p.num_queues)
        primal = p.rhs - p.rows @ x
        price = slope + q
        dual = p.cost + spread(price) - transposed @ y - z
        gap = float(x @ z) + (float(t @ q) if capped else 0.0)
        value = float(p.cost @ x) + p.unit * float((rho / (1 - rho)).sum())
        size = 1e-12 + abs(value)
        residual = float(np.abs(primal).max(initial=0.0)) / scale_p
        slack = float(np.abs(dual) @ x) / size
        error = max(residual, slack, gap / size)
        if error < max(best.residual, 0.0) or not np.isfinite(best.residual):
            best = Point(x.copy(), y.copy(), price.copy(), error <= tolerance, error)
        if error <= tolerance:
            break
        mu = gap / (n + (p.num_queues if capped else 0))
        theta = x / z
        sigma = curve + (q / t if capped else 0.0)
        kappa = sigma / (1 + sigma * gather(b * theta))
        scaled = p.rows * theta if dense else p.rows.multiply(theta).tocsr()
        weighted = _by_queue(scaled, at, b, p.num_queues, dense)
        schur = np.asarray(scaled @ transposed if dense else (scaled @ transposed).toarray())
        schur -= (weighted * kappa) @ weighted.T
        diagonal = np.einsum("ii->i", schur)
        diagonal += 1e-14 * np.abs(diagonal) + 1e-300
        try:
            factor = np.linalg.inv(schur) if len(schur) <= 4 else None
            solve = (lambda r: factor @ r) if factor is not None else _cholesky(schur)
        except (np.linalg.LinAlgError, ValueError):
            break

        def inverse(v: Array) -> Array:
            tv = theta * v
            out: Array = tv - theta * spread(kappa * gather(tv))
            return out

        def step(target: float, second_x: Array | float, second_q: Array | float) -> tuple[Array, Array, Array, Array]:
            """Newton's step towards complementarity ``target``."""
            cx = (target - second_x) / x
            cq = (target - second_q) / t if capped else np.zeros(p.num_queues)
            g = p.cost + spread(slope + cq) - transposed @ y - cx
            right = primal + p.rows @ inverse(g)
            dy = solve(right)
            dx = inverse(transposed @ dy - g)
            for _ in range(2):  # the system is ill-conditioned near the end
                rest = primal - p.rows @ dx
                more = solve(rest)
                dy = dy + more
                dx = dx + inverse(transposed @ more)
            dz = cx - z - z / x * dx
            dq = cq - q + q / t * gather(dx) if capped else np.zeros(p.num_queues)
            return dx, dy, dz, dq

        dx, dy, dz, dq = step(0.0, 0.0, 0.0)
        if not np.isfinite(dx).all() or not np.isfinite(dz).all():
            break
        primal_way, dual_way = _ways(p, x, z, rho, q, dx, dz, dq, gather, capped, 1.0)
        after = float((x + primal_way * dx) @ (z + dual_way * dz))
        if capped:
            after += float((t - primal_way * gather(dx)) @ (q + dual_way * dq))
        centre = min(max((after / gap) ** 3, 1e-6), 0.9) if gap > 0 else 0.1
        if min(primal_way, dual_way) < 0.1:
            centre = max(centre, 0.3)
        # products far below the other errors only cost digits
        target = max(centre * mu, min(mu, 0.05 * max(slack, residual, tolerance) * size / n))
        dx, dy, dz, dq = step(target, dx * dz, -gather(dx) * dq)
        if not np.isfinite(dx).all() or not np.isfinite(dz).all():
            break
        way_x, way_z = _ways(p, x, z, rho, q, dx, dz, dq, gather, capped, BACK)
        way = min(way_x, way_z)  # one length: the queues' slopes tie both sides together
        x, y, z, q = x + way * dx, y + way * dy, z + way * dz, q + way * dq
        rho = gather(x)
        if way < 1e-10:
            break
    return best


def _by_queue(scaled: Any, at: NDArray[np.int64], b: Array, num_queues: int, dense: bool) -> Array:
    """Return Σ over the variables of each queue of the columns of ``scaled`` times b, (m, num_queues)."""
    import scipy.sparse as sp

    to_queue = sp.csr_matrix((b, (np.arange(len(at)), at)), shape=(len(at), num_queues))
    out: Array = (to_queue.T @ scaled.T).T if dense else (scaled @ to_queue).toarray()
    return out


def _cholesky(matrix: Array) -> Any:
    from scipy.linalg import cho_factor, cho_solve

    if not np.isfinite(matrix).all():
        raise np.linalg.LinAlgError
    size = np.sqrt(np.maximum(np.einsum("ii->i", matrix), 1e-300))
    scaled = matrix / size[:, None] / size[None, :]
    for extra in (0.0, 1e-13, 1e-11, 1e-9):
        try:
            factor = cho_factor(scaled + extra * np.eye(len(size)), check_finite=False)
        except np.linalg.LinAlgError:
            continue
        return lambda right: cho_solve(factor, right / size, check_finite=False) / size
    raise np.linalg.LinAlgError


def _ways(
    p: Program, x: Array, z: Array, rho: Array, q: Array, dx: Array, dz: Array, dq: Array,
    gather: Any, capped: bool, back: float,
) -> tuple[float, float]:  # fmt: skip
    """Return how far the step may go before something positive turns negative, on either side."""

    def most(value: Array, change: Array) -> float:
        down = change < 0
        return float((-value[down] / change[down]).min(initial=np.inf))

    drho = gather(dx)
    primal = min(most(x, dx), most((p.most if capped else 1.0) - rho, -drho))
    dual = most(z, dz)
    if capped:
        dual = min(dual, most(q, dq))
    return min(1.0, back * primal), min(1.0, back * dual)
