r"""Good plans: rounding the prices, best response, exchanges of two users, and repeated small shake-ups.

A user that moves from use :math:`(a, b)` to :math:`(a', b')` changes the cost by the difference of
``lin + 2 (S a + a^2 / 2)``-like terms, with S the use of the others. All columns are rated in one pass; a pair of moves
interacts only through the product of their changes of use, so all pairs among the best few hundred moves are one
matrix product. With deadlines the rating is an estimate (the others keep their stretch), and every batch of moves is
verified by new shares before it is kept. Memory is a hard limit of every move: what does not fit is not tried.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edgeopt_solvers.fleet.instance import MEMORY_SLIP, Array, Ints
from edgeopt_solvers.fleet.model import Columns, Model, charge
from edgeopt_solvers.fleet.shares import Allocation, allocate

__all__ = ["Search"]

#: Moves that are combined into pairs.
_PAIRED = 700


class Search:
    """A plan over a fixed list of columns, and the moves that improve it.

    Parameters
    ----------
    model, cols
        The options; ``cols`` holds at least one per user.
    choice : (U,)
        Column of each user.
    """

    def __init__(self, model: Model, cols: Columns, choice: Ints) -> None:
        self.model, self.cols = model, cols
        self.choice = choice.copy()
        self.num_moves = 0
        self.settle()

    def settle(self) -> None:
        """Recompute shares, load and value from the choices alone."""
        self.allocation: Allocation = allocate(self.model, self.cols.take(self.choice))
        self.value = self.allocation.value
        self._load = np.append(self.allocation.prices, 0.0)
        self._full = None if self.cols.held is None else self.cols.memory(self.choice)
        if self.overfull():
            self.value = math.inf

    def overfull(self) -> bool:
        """Whether some server's memory does not hold what is on it."""
        return self._full is not None and bool((self._full > 1 + MEMORY_SLIP).any())

    def fits(self) -> NDArray[np.bool_]:
        """Return for each column whether its server has memory for it, the user's present share of it set free."""
        cols = self.cols
        if self._full is None or cols.held is None:
            return np.ones(len(cols.user), dtype=bool)
        now = self.choice[cols.user]
        own = np.where(cols.resource == cols.resource[now], cols.held[now], 0.0)
        return np.asarray((cols.held <= own) | (self._full[cols.resource] - own + cols.held <= 1 + MEMORY_SLIP))

    def _fits(self, target: int) -> bool:
        held, full = self.cols.held, self._full
        if held is None or full is None:
            return True
        now, server = self.choice[self.cols.user[target]], self.cols.resource[target]
        own = held[now] if self.cols.resource[now] == server else 0.0
        return bool(held[target] <= own or full[server] - own + held[target] <= 1 + MEMORY_SLIP)

    def unload(self, out_of_time: Callable[[], bool]) -> None:
        """While memory is overfull, move users off, first those that lose least for the memory they set free."""
        cols = self.cols
        if not self.overfull() or cols.held is None or self._full is None:
            return
        moved = True
        while moved and self.overfull() and not out_of_time():
            moved = False
            now = self.choice[cols.user]
            excess = np.maximum(self._full - 1, 0.0)[cols.resource[now]]
            away = (excess > MEMORY_SLIP) & ((cols.resource != cols.resource[now]) | (cols.held < cols.held[now]))
            candidates = np.flatnonzero(away & self.fits())
            set_free = cols.held[now] - np.where(cols.resource == cols.resource[now], cols.held, 0.0)
            freed = np.maximum(np.minimum(set_free, excess)[candidates], 1e-300)
            rate = self.ratings()[candidates] / freed
            for target in candidates[np.argsort(rate, kind="stable")].tolist():
                if out_of_time():
                    break
                user = cols.user[target]
                present = self.choice[user]
                unmoved = present == now[cols.first[user]]
                if unmoved and self._full[cols.resource[present]] > 1 + MEMORY_SLIP and self._fits(target):
                    self._apply(target, 0.0)
                    moved = True
        if self.overfull():
            self._evict()
        self.settle()

    def _evict(self) -> None:
        """Take users off overfull servers at once, those that hold most first: a plan for when time is up."""
        cols, solo = self.cols, self._solo()
        assert cols.held is not None
        assert self._full is not None
        for server in np.flatnonzero(self._full > 1 + MEMORY_SLIP).tolist():
            users = np.flatnonzero((cols.resource[self.choice] == server) & (solo >= 0))
            held = cols.held[self.choice[users]]
            order = np.argsort(-held, kind="stable")
            number = int(np.searchsorted(np.cumsum(held[order]), self._full[server] - 1)) + 1
            self.choice[users[order[:number]]] = solo[users[order[:number]]]

    def _solo(self) -> Ints:
        """Return each user's solo column, -1 for none."""
        solo = np.full(len(self.choice), -1)
        alone = np.flatnonzero(self.cols.key < 0)
        solo[self.cols.user[alone]] = alone
        return solo

    def ratings(self) -> Array:
        """Return the change of cost if the user of each column moved to it (an estimate with deadlines)."""
        cols, now = self.cols, self.choice[self.cols.user]
        stretch = self.allocation.stretch[cols.user]
        same = cols.resource == cols.resource[now]
        cell = np.maximum(self._load[cols.cell] - stretch * cols.a[now], 0.0)
        server = np.maximum(self._load[cols.resource] - np.where(same, stretch * cols.b[now], 0.0), 0.0)
        use = cols.a * (cell + cols.a / 2) + cols.b * (server + cols.b / 2)
        if cols.slack is not None:
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                more = np.maximum(use / np.maximum(cols.slack, 1e-300), 1.0)
                use = cols.a * (cell + np.minimum(more, 1e3) * cols.a / 2) + cols.b * (
                    server + np.minimum(more, 1e3) * cols.b / 2
                )
        cost = charge(cols.lin, use, cols.slack)
        change: Array = cost - cost[now]
        change[self.choice] = 0.0
        return change

    def descend(self, out_of_time: Callable[[], bool], rounds: int = 80) -> None:
        """Let users move to better columns until none wants to."""
        for _ in range(rounds):
            if out_of_time():
                return
            change = self.ratings()
            if self._full is not None:
                change[~self.fits()] = math.inf
            best = np.minimum.reduceat(change, self.cols.first)
            users = np.flatnonzero(best < -1e-10 * abs(self.value) / len(best))
            if not len(users):
                return
            users = users[np.argsort(best[users], kind="stable")]
            candidates = np.flatnonzero(change <= best[self.cols.user])
            target = np.zeros(len(best), dtype=np.int64)
            target[self.cols.user[candidates]] = candidates
            if not self._move(target[users], best[users], out_of_time):
                return

    def _move(self, targets: Ints, promised: Array, out_of_time: Callable[[], bool]) -> bool:
        if self.cols.slack is None:
            moved = False
            for target, promise in zip(targets.tolist(), promised.tolist(), strict=True):
                if out_of_time():
                    break
                change = self._change(target)
                # A promise that other moves have spoiled is rated anew in the next round.
                if not self._fits(target):
                    continue
                if change < 0.3 * promise:
                    self._apply(target, change)
                    moved = True
            return moved
        size = max(1, len(targets) // 2)
        while not out_of_time():
            if self._try(targets[:size]):
                return True
            if size == 1:
                # One at a time, in the order promised; a bounded number of failures.
                return any(self._try(targets[i : i + 1]) for i in range(1, min(len(targets), 12)) if not out_of_time())
            size //= 3
            size = max(1, size)
        return False

    def _try(self, targets: Ints) -> bool:
        """Move the users of ``targets`` together; keep it only if the true value falls."""
        choice = self.choice.copy()
        full = self._full
        if full is not None and self.cols.held is not None:
            full = full.copy()
            targets = self._together(targets)
            leaving = self.choice[self.cols.user[targets]]
            np.add.at(full, self.cols.resource[leaving], -self.cols.held[leaving])
            np.add.at(full, self.cols.resource[targets], self.cols.held[targets])
        choice[self.cols.user[targets]] = targets
        allocation = allocate(self.model, self.cols.take(choice), self.allocation.prices)
        if not allocation.value < self.value - 1e-12 * abs(self.value):
            return False
        self.choice, self.allocation, self.value = choice, allocation, allocation.value
        self._load, self._full = np.append(allocation.prices, 0.0), full
        self.num_moves += len(targets)
        return True

    def _together(self, targets: Ints) -> Ints:
        """Return those of the moves ``targets`` that fit into memory when made one after the other."""
        held, full = self.cols.held, self._full
        assert held is not None
        assert full is not None
        full, kept = full.copy(), []
        for target in targets.tolist():
            now, server = self.choice[self.cols.user[target]], self.cols.resource[target]
            free = held[now] if self.cols.resource[now] == server else 0.0
            if held[target] <= free or full[server] - free + held[target] <= 1 + MEMORY_SLIP:
                full[self.cols.resource[now]] -= held[now]
                full[server] += held[target]
                kept.append(target)
        return np.array(kept, dtype=np.int64)

    def _change(self, target: int) -> float:
        """Exact change of cost when one user moves, without deadlines."""
        cols, load = self.cols, self._load
        now = self.choice[cols.user[target]]
        cell, old, new = cols.cell[target], cols.resource[now], cols.resource[target]
        more = cols.a[target] - cols.a[now]
        change = cols.lin[target] - cols.lin[now] + more * (2 * load[cell] + more)
        if old == new:
            more = cols.b[target] - cols.b[now]
            return float(change + more * (2 * load[old] + more))
        gone, come = cols.b[now], cols.b[target]
        return float(change - gone * (2 * load[old] - gone) + come * (2 * load[new] + come))

    def _apply(self, target: int, change: float) -> None:
        cols = self.cols
        user = cols.user[target]
        now = self.choice[user]
        self._load[cols.cell[target]] += cols.a[target] - cols.a[now]
        self._load[cols.resource[now]] -= cols.b[now]
        self._load[cols.resource[target]] += cols.b[target]
        if self._full is not None and cols.held is not None:
            self._full[cols.resource[now]] -= cols.held[now]
            self._full[cols.resource[target]] += cols.held[target]
        self.choice[user] = target
        self.value += change
        self.num_moves += 1

    def exchange(self, out_of_time: Callable[[], bool], rounds: int = 20) -> None:
        """Move two users at a time, where together they gain (no deadlines)."""
        if self.cols.slack is not None:
            return
        for _ in range(rounds):
            if out_of_time() or not self._exchange():
                return
            self.descend(out_of_time)

    def _exchange(self) -> bool:
        cols, size = self.cols, len(self._load)
        change = self.ratings()
        change[self.choice] = np.inf
        keep = min(_PAIRED, len(change) - len(self.choice))
        if keep < 2:
            return False
        move = np.argpartition(change, keep - 1)[:keep]
        now = self.choice[cols.user[move]]
        shift = np.zeros((keep, size))
        row = np.arange(keep)
        shift[row, cols.cell[move]] = cols.a[move] - cols.a[now]
        shift[row, cols.resource[now]] -= cols.b[now]
        shift[row, cols.resource[move]] += cols.b[move]
        best, partner = np.full(keep, np.inf), np.zeros(keep, dtype=np.int64)
        step = max(1, 200_000 // (keep * size))
        for low in range(0, keep, step):
            part = slice(low, low + step)
            both = (2 * shift[part]) @ shift.T
            both += change[move[part], None] + change[move]
            both[cols.user[move[part], None] == cols.user[move]] = np.inf
            partner[part] = both.argmin(axis=1)
            best[part] = both[np.arange(len(both)), partner[part]]
        moved = False
        for i in np.argsort(best, kind="stable"):
            if not best[i] < -1e-10 * abs(self.value) / len(self.choice):
                break
            first, second = int(move[i]), int(move[partner[i]])
            if self.choice[cols.user[first]] != now[i] or self.choice[cols.user[second]] != now[partner[i]]:
                continue
            gain = self._change(first)
            self._apply(first, gain)
            more = self._change(second)
            if gain + more < 0.3 * best[i]:
                self._apply(second, more)
                if not self.overfull():
                    moved = True
                    continue
                self._apply(int(now[partner[i]]), -more)
            self._apply(int(now[i]), -gain)
        return moved

    def repair(self, out_of_time: Callable[[], bool]) -> None:
        """While deadlines cannot be met, take the users that strain most off the shared resources."""
        solo = self._solo()
        while math.isinf(self.value):
            cols = self.cols
            if out_of_time():
                self.choice = np.where(solo >= 0, solo, self.choice)
                self.settle()
                return
            use = cols.a * self._load[cols.cell] + cols.b * self._load[cols.resource]
            with np.errstate(divide="ignore", invalid="ignore"):
                strain = np.where(cols.slack > 0, use / cols.slack, np.inf)[self.choice]  # type: ignore[operator]
            strain[(solo < 0) | (self.choice == solo)] = -1.0
            users = np.argsort(-strain, kind="stable")[: max(1, len(solo) // 20)]
            users = users[strain[users] > 0]
            if not len(users):
                return
            self.choice[users] = solo[users]
            self.settle()

    def shake(self, rng: np.random.Generator, out_of_time: Callable[[], bool]) -> bool:
        """Move a few random users to random columns of theirs and descend; keep the result if it is better."""
        cols = self.cols
        choice, allocation, value, load = self.choice.copy(), self.allocation, self.value, self._load.copy()
        full = None if self._full is None else self._full.copy()
        counts = np.diff(np.append(cols.first, len(cols.user)))
        free = np.flatnonzero(counts > 1)
        if not len(free):
            return False
        size = min(len(free), int(rng.integers(1, 4 + len(free) // 50)))
        for user in rng.choice(free, size, replace=False):
            target = int(cols.first[user] + rng.integers(counts[user]))
            if target != self.choice[user] and self._fits(target):
                if cols.slack is None:
                    self._apply(target, self._change(target))
                else:
                    self._apply(target, 0.0)
        if cols.slack is not None:
            self.settle()
        if math.isfinite(self.value):
            self.descend(out_of_time)
        if self.value < value - 1e-12 * abs(value):
            return True
        self.choice, self.allocation, self.value, self._load, self._full = choice, allocation, value, load, full
        return False
