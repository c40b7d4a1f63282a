"""First come first served: the convex relaxation in a box of mean squares, by a primal-dual interior point.

On a device with flow L, load R and mean square Q = Σ λ_k E[S_k²], the number waiting is L Q / (2 (1 − R)). L Q is not
convex, but while r = Q / L lies in [a, b], (Q − a L)(b L − Q) >= 0 says

    L Q >= (Q² + a b L²) / (a + b),

whose quotient by 1 − R is convex, and which is off by no more than (b − a)² / (4 a b) of it: nothing where a = b.
:func:`relax` minimises

    f(x) = Σ flow_k network_k x_k + Σ_v R_v + (Q_v² + a_v b_v L_v²) / (2 (a_v + b_v) (1 − R_v))
    A x = 1 (each class),   G x >= h (loads, floors, boxes),   x >= 0

and returns, whatever the point reached, a bound that holds: f lies above its tangent plane there, whose minimum over
the classes' simplices at prices t >= 0 of G x >= h is a sum of minima.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeopt_solvers.chain.arrays import Array
from edgeopt_solvers.placement.serving import Serving

__all__ = ["Columns", "Point", "columns_of", "least_load", "relax"]

MOST_STEPS = 80

#: Complementarity and residuals, relative to the value, at which the interior point is done.
TIGHT = 1e-10

#: A floor within this of the best possible accuracy leaves only the columns that reach it.
EXACT = 1e-9


@dataclass(frozen=True, slots=True)
class Columns:
    """The ways (class, model, device) that queries may go, n of them, and the limits on them.

    Times are in units of ``unit`` seconds. ``flow`` is the class's arrivals; ``one`` (C', n) the classes' sums,
    ``devices`` (3, V, n) the forms Q, L and R of each device; ``rows`` (m, n) x >= ``least`` loads and floors.
    """

    at: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
    unit: float
    flow: Array
    mean: Array
    square: Array
    network: Array
    one: Array
    devices: Array
    rows: Array
    least: Array
    hopeless: bool

    def square_ranges(self) -> tuple[Array, Array]:
        """Return the least and the largest mean square on each device, (V,) each."""
        V = self.devices.shape[1]
        low, high = np.full(V, math.inf), np.zeros(V)
        np.minimum.at(low, self.at[2], self.square)
        np.maximum.at(high, self.at[2], self.square)
        return np.where(np.isfinite(low), low, 1.0), np.where(high > 0, high, 1.0)

    def number(self, x: Array) -> float:
        """Return the mean number in the system, ``inf`` beyond full load."""
        Q, L, R = self.devices @ x
        if (R >= 1).any():
            return math.inf
        return float(self.network @ (self.flow * x) + (R + L * Q / (2 * (1 - R))).sum())


@dataclass(frozen=True, slots=True)
class Point:
    """Fractions by column, a bound on the number in the system within the box, and whether the point is optimal."""

    x: Array
    bound: float
    converged: bool


def columns_of(instance: Serving, usable: NDArray[np.bool_]) -> Columns:
    """Set up the columns of an instance whose devices may use the models ``usable`` (M, V)."""
    classes = np.flatnonzero(instance.arrival_per_s > 0)
    service, network = instance.service_s[classes], instance.network_s[classes]
    accuracy = instance.accuracy[classes]
    arrival = instance.arrival_per_s[classes]
    part = arrival / math.fsum(arrival.tolist())
    allowed = np.isfinite(service) & np.isfinite(network) & usable
    hopeless = not allowed.any(axis=(1, 2)).all()
    best = np.where(allowed.any(axis=2), accuracy, -math.inf).max(axis=1)
    floor, floors = instance.min_accuracy, np.full(len(classes), -math.inf)
    mean_floor = -math.inf
    if isinstance(floor, float) and not hopeless:
        most = math.fsum((part * best).tolist())
        hopeless = floor > most + EXACT
        if floor > most - EXACT:
            floors = best
        else:
            mean_floor = floor
    elif floor is not None and not hopeless:
        floors = np.asarray(floor)[classes]
        hopeless = bool((floors > best + EXACT).any())
    tight = floors > best - EXACT
    allowed = allowed & (accuracy >= np.where(tight, best - EXACT, -1.0)[:, None])[:, :, None]
    c, m, v = np.nonzero(allowed)
    n, V = len(c), instance.num_devices
    unit = float(np.median(service[c, m, v])) if n else 1.0
    flow = arrival[c] * unit
    mean, square = service[c, m, v] / unit, instance.square_s2[classes][c, m, v] / unit**2
    one = np.zeros((len(classes), n))
    one[c, np.arange(n)] = 1.0
    on = np.zeros((V, n))
    on[v, np.arange(n)] = 1.0
    devices = np.stack([on * flow * square, on * flow, on * flow * mean])
    rows, least = [-devices[2]], [np.full(V, -min(instance.max_load, 1 - 1e-9))]
    if math.isfinite(mean_floor):
        rows.append((part[c] * accuracy[c, m])[None])
        least.append(np.array([mean_floor]))
    bound_classes = np.flatnonzero(np.isfinite(floors) & ~tight)
    rows.append(one[bound_classes] * accuracy[c, m])
    least.append(floors[bound_classes])
    return Columns(
        (classes[c], m, v), unit, flow, mean, square, network[c, m, v] / unit, one, devices,
        np.concatenate(rows), np.concatenate(least), hopeless,
    )  # fmt: skip


def least_load(columns: Columns, stop_s: float | None = None) -> tuple[float, Array | None] | None:
    """Return the least possible load of the fullest device and fractions that reach it.

    ``inf`` and no fractions where the floors leave nothing; ``None`` if HiGHS cannot say.
    """
    from scipy.optimize import linprog

    V, n = columns.devices.shape[1:]
    full = np.concatenate([columns.devices[2], np.full((V, 1), -1.0)], axis=1)
    floors = np.concatenate([-columns.rows[V:], np.zeros((len(columns.rows) - V, 1))], axis=1)
    cost = np.zeros(n + 1)
    cost[n] = 1.0
    answer = linprog(
        cost, np.concatenate([full, floors]), np.concatenate([np.zeros(V), -columns.least[V:]]),
        np.concatenate([columns.one, np.zeros((len(columns.one), 1))], axis=1), np.ones(len(columns.one)),
        (0, None), method="highs-ds", options={} if stop_s is None else {"time_limit": max(stop_s, 0.01)},
    )  # fmt: skip
    if answer.status == 2:
        return math.inf, None
    if answer.status != 0 or answer.x is None:
        return None
    return float(answer.x[n]), np.maximum(answer.x[:n], 0.0)


def relax(columns: Columns, low: Array, high: Array, start: Array) -> Point:
    """Minimise the relaxation in the box ``low`` <= Q / L <= ``high`` (V,) from fractions with loads below 1."""
    with np.errstate(all="ignore"):  # a path that leaves the range of floats ends; its best point counts
        return _relax(columns, low, high, start)


def _relax(columns: Columns, low: Array, high: Array, start: Array) -> Point:
    whole_low, whole_high = columns.square_ranges()
    Q_form, L_form, _ = columns.devices
    above, below = np.flatnonzero(low > whole_low), np.flatnonzero(high < whole_high)
    G = np.concatenate(
        [
            columns.rows,
            Q_form[above] - low[above, None] * L_form[above],
            high[below, None] * L_form[below] - Q_form[below],
        ]
    )
    h = np.concatenate([columns.least, np.zeros(len(above) + len(below))])
    size = np.maximum(np.abs(G).max(axis=1, initial=0.0), 1e-12)
    G, h = G / size[:, None], h / size
    C, n = columns.one.shape
    A = columns.one
    x = start.copy()
    s = np.maximum(G @ x - h, 1e-2)
    value, slope, _ = _function(columns, low, high, x)
    scale = max(abs(value), 1e-9)
    y, u, t = np.zeros(C), np.maximum(slope, 1e-2 * scale), np.full(len(h), 1e-2 * scale)
    alone = np.where(A > 0, columns.flow * (columns.network + columns.mean), math.inf)
    best, bound = x, math.fsum(alone.min(axis=1).tolist())  # nobody waits
    converged = False
    kkt = np.zeros((n + C, n + C))
    kkt[:n, n:], kkt[n:, :n] = -A.T, A
    for _ in range(MOST_STEPS):
        value, slope, curve = _function(columns, low, high, x)
        gap = float(x @ u + s @ t)
        primal = max(float(np.abs(1 - A @ x).max()), float(np.abs(h + s - G @ x).max(initial=0.0)))
        here = _tangent(columns, value, slope, x, A, G, h, t)
        if here > bound:
            bound = here
        if primal < 1e-6:
            best = x
        error = max(gap, value - bound) / max(abs(value), 1e-12)
        if error < TIGHT and primal < TIGHT:
            converged = True
            break
        mu = gap / (n + len(h))
        kkt[:n, :n] = curve + (G.T * (t / s)) @ G
        kkt[np.arange(n), np.arange(n)] += u / x
        residual_in = h + s - G @ x
        base = -(slope - A.T @ y - u - G.T @ t)

        def step(target: float, fix_x: Array | float, fix_s: Array | float) -> tuple[Array, ...]:
            left_x, left_s = (target - fix_x) / x - u, (target - fix_s) / s - t  # noqa: B023
            right = base + left_x + G.T @ (left_s + t / s * residual_in)  # noqa: B023
            found = np.linalg.solve(kkt, np.concatenate([right, 1 - A @ x]))  # noqa: B023
            dx, dy = found[:n], found[n:]
            ds = G @ dx - residual_in  # noqa: B023
            return dx, dy, ds, left_x - u / x * dx, left_s - t / s * ds  # noqa: B023

        try:
            dx, dy, ds, du, dt = step(0.0, 0.0, 0.0)
            way = min(_way(x, dx), _way(s, ds), _way(u, du), _way(t, dt), _inside(columns, x, dx), 1.0)
            after = float((x + way * dx) @ (u + way * du) + (s + way * ds) @ (t + way * dt))
            centre = min(max((after / gap) ** 3, 1e-4), 0.8)
            dx, dy, ds, du, dt = step(centre * mu, dx * du, ds * dt)
        except np.linalg.LinAlgError:
            break
        way = min(0.99 * min(_way(x, dx), _way(s, ds), _way(u, du), _way(t, dt), _inside(columns, x, dx)), 1.0)
        if not np.isfinite(dx).all() or way < 1e-10:
            break
        x, y, s, u, t = x + way * dx, y + way * dy, s + way * ds, u + way * du, t + way * dt
    return Point(best, bound, converged)


def _way(value: Array, change: Array) -> float:
    down = change < 0
    return float((-value[down] / change[down]).min(initial=math.inf))


def _inside(columns: Columns, x: Array, dx: Array) -> float:
    """How far loads stay below 1."""
    return _way(1 - columns.devices[2] @ x, -(columns.devices[2] @ dx))


def _function(columns: Columns, low: Array, high: Array, x: Array) -> tuple[float, Array, Array]:
    """Value, gradient (n,) and Hessian (n, n) of f."""
    forms = columns.devices
    Q, L, R = forms @ x
    p, ab, w = 0.5 / (low + high), low * high, 1 / (1 - R)
    P = p * (Q * Q + ab * L * L)
    slopes = np.stack([2 * p * Q * w, 2 * p * ab * L * w, 1 + P * w * w])
    V = len(Q)
    H = np.zeros((3, 3, V))
    H[0, 0], H[1, 1], H[2, 2] = 2 * p * w, 2 * p * ab * w, 2 * P * w**3
    H[0, 2] = H[2, 0] = 2 * p * Q * w * w
    H[1, 2] = H[2, 1] = 2 * p * ab * L * w * w
    linear = columns.network * columns.flow
    value = float(linear @ x + (R + P * w).sum())
    gradient = linear + np.einsum("iv,ivn->n", slopes, forms)
    part = np.einsum("ijv,jvn->ivn", H, forms).reshape(3 * V, -1)
    curve: Array = forms.reshape(3 * V, -1).T @ part
    return value, gradient, curve


def _tangent(
    columns: Columns, value: float, slope: Array, x: Array, A: Array, G: Array, h: Array, t: Array
) -> float:  # fmt: skip
    """The bound of the module docstring at a point and prices."""
    reduced = slope - G.T @ t
    least = np.where(A > 0, reduced, math.inf).min(axis=1)
    found = math.fsum([value, -float(slope @ x), float(t @ h), *least.tolist()])
    return found if math.isfinite(found) else -math.inf
