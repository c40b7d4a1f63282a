r"""Prices of spectrum and compute: the best lower bound, and where a good plan lies.

The dual :math:`g(\mu)` of :func:`edgeopt_solvers.fleet.model.price` is concave in the prices of shares
:math:`\mu^2` but has kinks where users change their option. Replacing each user's minimum by a soft minimum at
temperature T,

.. math::

    g_T(\mu) = -T \sum_u \log \sum_p \exp(-charge_{up}(\mu) / T) - \sum_r \mu_r^2,

makes it smooth with a Hessian of only R x R entries (cells and servers), so Newton's method takes a handful of steps
per temperature, and lowering T follows the optimum. Options enter as columns when their reduced cost comes within a
few T. The soft choice probabilities are the fractional plan that rounding starts from. Any prices give a valid bound,
so numerical trouble can make the bound weaker but never wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgeopt_solvers.fleet.instance import Array, Ints
from edgeopt_solvers.fleet.model import Columns, Model, charge, columns, price, subset, worth
from edgeopt_solvers.fleet.starts import greedy, sample, with_memory

__all__ = [
    "Dual",
    "add_products",
    "ascend",
    "charges",
    "conjugate_gradients",
    "maximise",
    "soft",
]


@dataclass(slots=True)
class Dual:
    """Best prices so far, the bound they prove, a user's mean cost; ``work`` counts Newton steps and pricings."""

    prices: Array
    bound: float
    mean: float
    work: int = 0


def charges(cols: Columns, prices: Array) -> Array:
    """Return what every column pays at ``prices``."""
    size = cols.num_resources
    extended = np.append(prices[:size], 0.0)
    paid = charge(cols.lin, cols.a * extended[cols.cell] + cols.b * extended[cols.resource], cols.slack, cols.aim)
    if cols.held is not None:
        memory = np.zeros(size + 1)
        memory[2 * size - len(prices) : size] = prices[size:]
        paid = paid + cols.held * memory[cols.resource]
    return paid


def soft(cols: Columns, paid: Array, temperature: float) -> tuple[Array, Array]:
    """Return each user's soft minimum, and the choice probability of every column."""
    least = np.minimum.reduceat(paid, cols.first)
    weight = np.exp((least[cols.user] - paid) / temperature)
    total = np.add.reduceat(weight, cols.first)
    return least - temperature * np.log(total), weight / total[cols.user]


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def ascend(
    cols: Columns,
    prices: Array,
    temperature: float,
    copies: Array | None = None,
    steps: int = 12,
    out_of_time: Callable[[], bool] = lambda: False,
) -> tuple[Array, int]:
    """Maximise the soft dual over the given columns by damped Newton steps; return the prices and the steps taken.

    ``copies`` says for how many users each listed user stands (the coarse dual of a large fleet).
    """
    paid = charges(cols, prices)
    value, probability = soft(cols, paid, temperature)
    # Where only deadlines count, many resources hardly matter, and prices without a floor would run to zero.
    barrier = 0.0
    if cols.aim != "cost":
        barrier = temperature * (len(cols.first) if copies is None else float(copies.sum())) / len(prices)
    size = cols.num_resources
    objective = _objective(cols, value, prices, copies, barrier)
    for step in range(steps):
        gradient, hessian = _derivatives(cols, prices, probability, temperature, barrier, copies)
        direction = conjugate_gradients(-hessian, gradient)
        rise = float((gradient * direction).sum())
        # Not finite: the dual is unbounded (no plan meets the deadlines) and the prices have run away.
        if not 0.1 * temperature < rise < math.inf or out_of_time():
            return prices, step
        length = 1.0
        while True:
            # Prices stay positive: at most nine tenths of the way to zero.
            trial = np.maximum(prices + length * direction, 0.1 * prices)
            if cols.aim != "cost":
                # A line in the prices, not in their roots: then the dual is concave on it.
                trial = prices + length * direction
                shares = prices[:size] * np.maximum(prices[:size] + 2 * length * direction[:size], 0.01 * prices[:size])
                trial = np.append(np.sqrt(shares), np.maximum(trial[size:], 0.1 * prices[size:]))
            trial_value, trial_probability = soft(cols, charges(cols, trial), temperature)
            trial_objective = _objective(cols, trial_value, trial, copies, barrier)
            if trial_objective >= objective + 0.1 * length * rise:
                break
            length *= 0.4
            if length < 1e-4:
                return prices, step + 1
        prices, objective, probability = trial, trial_objective, trial_probability
    return prices, steps


def _objective(cols: Columns, value: Array, prices: Array, copies: Array | None, barrier: float) -> float:
    total = float((value if copies is None else value * copies).sum()) - worth(prices, cols.num_resources, cols.aim)
    if barrier:
        # Of prices: the first are roots of prices.
        power = np.where(np.arange(len(prices)) < cols.num_resources, 2.0, 1.0)
        total += barrier * float((power * np.log(prices)).sum())
    return total


def _derivatives(
    cols: Columns, prices: Array, probability: Array, temperature: float, barrier: float, copies: Array | None
) -> tuple[Array, Array]:
    """Gradient and Hessian of the soft dual; with deadlines, in the metric of share prices, where it is concave."""
    num_users, num_resources = len(cols.first), cols.num_resources
    a, b = cols.a, cols.b
    mass = probability if copies is None else probability * copies[cols.user]
    # Resources, the dummy of solo options, memories.
    size = len(prices) + 1
    curvature = np.zeros((size, size))
    bound_by_deadline = False
    if cols.slack is not None:
        extended = np.append(prices[:num_resources], 0.0)
        use = a * extended[cols.cell] + b * extended[cols.resource]
        late = use > (cols.slack if cols.aim == "cost" else 0.0)
        if late.any():
            bound_by_deadline = True
            slack = np.where(late & (cols.slack > 0), cols.slack, np.inf)
            add_products(curvature, cols, a, b, mass * 2 / slack)
            stretch = np.where(late, use / np.where(cols.slack > 0, cols.slack, 1.0), 1.0)
            a, b = a * stretch, b * stretch
    ones = np.ones(num_users) if copies is None else copies
    memory, half = _memory(cols, size)
    total = np.bincount(cols.cell, mass * a, size) + np.bincount(cols.resource, mass * b, size)
    if half is not None:
        total += np.bincount(memory, mass * half, size)
    spread = np.zeros((size, size))
    if len(cols.user) > num_users:
        spread = _spread(cols, a, b, memory, half, probability, ones, size)
    real = np.delete(np.arange(size), num_resources)
    # What all there is costs, and how that rises with the prices.
    rise, each = np.append(2 * prices[:num_resources], np.ones(len(prices) - num_resources)), 1.0
    if cols.aim == "level":
        each = worth(prices, num_resources)
    gradient = 2 * total[real] - each * rise
    hessian = (curvature - spread * (4 / temperature))[np.ix_(real, real)]
    diagonal = np.arange(num_resources)
    hessian[diagonal, diagonal] -= 2 * each
    if cols.aim == "level":
        hessian -= np.outer(rise, rise)
    if barrier:
        inverse = np.where(np.arange(len(prices)) < num_resources, 2 * barrier, barrier) / prices
        gradient += inverse
        hessian[np.arange(len(prices)), np.arange(len(prices))] -= inverse / prices
    relative = gradient / np.maximum(prices, 1e-300)
    if bound_by_deadline:
        hessian[diagonal, diagonal] -= relative[:num_resources]
    # The price of memory has no curvature of its own: a step takes it at most to about zero, or to the tenfold.
    diagonal = np.arange(num_resources, len(prices))
    hessian[diagonal, diagonal] -= np.where(relative < 0, -relative, 0.1 * relative)[num_resources:]
    return gradient, hessian


def _spread(
    cols: Columns, a: Array, b: Array, memory: Ints, half: Array | None, probability: Array, copies: Array, size: int
) -> Array:
    """Return the sum over users of the covariance of their use of resources; nothing for users with one option."""
    num_users = len(cols.first)
    mass = probability * copies[cols.user]
    spread = np.zeros((size, size))
    add_products(spread, cols, a, b, mass)
    if half is not None:
        _add_memory(spread, cols, a, b, memory, half, mass)
    # Mean use of every user: one cell, few servers; in blocks of users so that memory stays small.
    mean_a = np.add.reduceat(probability * a, cols.first)
    block = max(1, 2_000_000 // size)
    for low in range(0, num_users, block):
        high = min(num_users, low + block)
        i, j = cols.first[low], len(cols.user) if high == num_users else cols.first[high]
        row = (cols.user[i:j] - low) * size
        mean: Array = np.bincount(row + cols.resource[i:j], probability[i:j] * b[i:j], (high - low) * size)  # type: ignore[assignment]
        if half is not None:
            mean += np.bincount(row + memory[i:j], probability[i:j] * half[i:j], (high - low) * size)
        mean = mean.reshape(high - low, size)
        mean[np.arange(high - low), cols.cell[cols.first[low:high]]] += mean_a[low:high]
        _add_gram(spread, mean, -copies[low:high])
    return spread


def _memory(cols: Columns, size: int) -> tuple[Ints, Array | None]:
    """Row of each column's memory, and half the fraction held: charges rise by twice what is returned, as with use."""
    if cols.held is None:
        return cols.resource, None
    num_servers = size - 1 - cols.num_resources
    return np.where(cols.key < 0, cols.resource, cols.resource + 1 + num_servers), cols.held / 2


def _add_memory(matrix: Array, cols: Columns, a: Array, b: Array, memory: Ints, half: Array, mass: Array) -> None:
    """Add what :func:`add_products` leaves out: products of memory with use, and with itself."""
    size = len(matrix)
    for other, use in ((cols.cell, a), (cols.resource, b)):
        cross = np.bincount(other * size + memory, mass * use * half, size * size).reshape(size, size)
        matrix += cross
        matrix += cross.T
    matrix[np.arange(size), np.arange(size)] += np.bincount(memory, mass * half * half, size)


def add_products(matrix: Array, cols: Columns, a: Array, b: Array, mass: Array) -> None:
    """Add the sum over columns of mass * (a e_cell + b e_server)(a e_cell + b e_server)'."""
    size = len(matrix)
    cross = np.bincount(cols.cell * size + cols.resource, mass * a * b, size * size).reshape(size, size)
    matrix += cross
    matrix += cross.T
    diagonal = np.bincount(cols.cell, mass * a * a, size) + np.bincount(cols.resource, mass * b * b, size)
    matrix[np.arange(size), np.arange(size)] += diagonal


def _add_gram(matrix: Array, rows: Array, weight: Array) -> None:
    """Add rows' diag(weight) rows, in products too small for the linear algebra library to start threads for.

    Threads that wait for each other on busy cores cost a hundred times the product itself.
    """
    size = len(matrix)
    step = max(1, 200_000 // size**2) if size <= 250 else len(rows)
    for low in range(0, len(rows), step):
        part = rows[low : low + step]
        matrix += (part * weight[low : low + step, None]).T @ part


def conjugate_gradients(matrix: Array, right: Array) -> Array:
    """Solve a positive definite system, also nearly singular ones: any early stop still is an ascent direction."""
    diagonal = matrix.diagonal()
    inverse = 1 / np.where(diagonal > 0, diagonal, 1.0)
    x = np.zeros_like(right)
    residual = right.copy()
    scaled = inverse * residual
    direction = scaled
    power = float(residual @ scaled)
    target = 1e-12 * power
    for _ in range(2 * len(right)):
        image = np.einsum("ij,j->i", matrix, direction)
        curvature = float(direction @ image)
        if not curvature > 0:
            break
        length = power / curvature
        x += length * direction
        residual -= length * image
        scaled = inverse * residual
        before, power = power, float(residual @ scaled)
        if not power > target:
            break
        direction = scaled + (power / before) * direction
    return x if x.any() else inverse * right


def maximise(
    model: Model,
    out_of_time: Callable[[], bool],
    start: Array | None = None,
    copies: Array | None = None,
    coarsest: float = 0.03,
    finest: float = 2e-6,
) -> Dual:
    """Follow the soft dual from temperature ``coarsest`` to ``finest``, in parts of the mean cost of a user."""
    if start is None:
        start, coarsest = _start(model, out_of_time, coarsest)
    value, _, least, _ = _price(model, start, copies, None, out_of_time)
    mean = float(np.abs(least).mean()) or 1.0
    dual = Dual(start, value, mean, 1)
    prices, keys = start, np.zeros(0, dtype=np.int64)
    temperature = coarsest * mean
    while temperature > finest * mean and not out_of_time():
        for _ in range(8):
            value, new, _, _ = _price(model, prices, copies, 8 * temperature, out_of_time)
            dual.work += 1
            if value > dual.bound:
                dual.prices, dual.bound = prices, value
            if out_of_time():
                # The pass may have seen only some users.
                return dual
            num_old = len(keys)
            keys = np.union1d(keys, new)
            cols = columns(model, keys)
            moved, steps = ascend(cols, prices, temperature, copies, 12, out_of_time)
            dual.work += steps
            shift = float(np.abs(moved - prices).max() / max(float(moved.max()), 1e-300))
            prices = moved
            if out_of_time() or shift < 1e-3 or (steps < 12 and len(keys) < 1.02 * num_old):
                break
        paid = charges(cols, prices)
        excess = paid - np.minimum.reduceat(paid, cols.first)[cols.user]
        temperature /= 5
        keys = np.sort(cols.key[(excess <= 60 * temperature) & (cols.key >= 0)])
    if not out_of_time():
        value = _price(model, prices, copies, None, out_of_time)[0]
        if value > dual.bound:
            dual.prices, dual.bound = prices, value
    return dual


def _price(
    model: Model, prices: Array, copies: Array | None, reach: float | None, out_of_time: Callable[[], bool]
) -> tuple[float, Ints, Array, float]:
    value, keys, least, kept = price(model, prices, reach, 2000 + 20 * model.num_users, out_of_time)
    if copies is not None and value > -math.inf:
        value = float((least * copies).sum()) - worth(prices, model.num_resources, model.aim)
    return value, keys, least, kept


def _start(model: Model, out_of_time: Callable[[], bool], coarsest: float) -> tuple[Array, float]:
    """Prices to begin with: those of a sample of the users in a large fleet, else the use in a quick greedy plan."""
    part = sample(model)
    if part is None:
        return with_memory(model, greedy(model, out_of_time)), coarsest
    few, copies = subset(model, part[0]), part[1]
    first = with_memory(few, greedy(few, out_of_time, copies))
    dual = maximise(few, out_of_time, first, copies, coarsest, 2e-3)
    return dual.prices, 0.1 * coarsest
