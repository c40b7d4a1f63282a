"""One forward pass on the meta device, followed tensor by tensor.

From one pass come the FLOPs of every part, the weights that each part reads, the bytes alive at every cut between
parts, the most bytes alive at once, and the bytes that kernels move. Nothing of it is written per model family.

FLOPs are those of torch's ``FlopCounterMode``: two per multiply-add of matrix products, convolutions and attention
(causal attention as the full square), none for anything else. On the meta device attention is decomposed, so that
it is counted too; on the CPU it would be missed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from edgeopt.errors import Finding, InputError

__all__ = ["Part", "Trace"]


@dataclass(slots=True)
class _Storage:
    """A piece of memory that one operation makes and others read; views of it are the same piece."""

    num_bytes: int
    part: int
    born: int
    read: int
    last_part: int
    follows_latent: bool
    counted: bool  # temporaries inside fused attention never exist
    weights: frozenset[str]  # that went into it, where it does not follow the latent
    views: dict[tuple[int, ...], tuple[int, int]]  # offset and shape of each view that is read: bytes, last part

    def read_after(self, cut: int) -> int:
        """Bytes that parts after ``cut`` read, of views no more than the whole."""
        return min(self.num_bytes, sum(num_bytes for num_bytes, last in self.views.values() if last > cut))


@dataclass(slots=True)
class Part:
    """What happened between two marks; ``borrowed``: weights behind what earlier parts made without the latent."""

    name: str
    flop: int = 0
    weights: set[str] = field(default_factory=set)
    borrowed: set[str] = field(default_factory=set)
    cut_bytes: int = 0
    traffic_bytes: int = 0
    num_kernels: int = 0


class Trace(TorchDispatchMode):
    """Follow one forward pass of a module.

    Parameters
    ----------
    module
        On the meta device. Its parameters and saved buffers count as weights; buffers of floating point are taken to
        be in the dtype of the parameters, as they are after loading.
    latents
        Input tensors whose descendants cross a cut; everything else is made again on each side of it.
    """

    def __init__(self, module: nn.Module, latents: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self._name = type(module).__name__
        self.parts = [Part("input")]
        self._step = 0
        self._alive: dict[int, _Storage] = {}
        self._keep: list[Any] = []  # storages are told apart by address, so none may be freed
        self.tensors = dict(module.state_dict(keep_vars=True))
        self._itemsize = next(module.parameters()).itemsize
        self._weights: dict[int, str] = {}
        for name, tensor in self.tensors.items():
            self._weights.setdefault(_address(tensor), name)
        for tensor in latents:
            self._remember(tensor, follows_latent=True, counted=True)
        self._flops = FlopCounterMode(display=False)
        self._flops_before = 0
        self._fused = False

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count what runs inside.

        Raises
        ------
        InputError
            It does not fit the module, or wants to look at values.
        """
        try:
            with torch.device("meta"), torch.no_grad(), _Attention(self), self, self._flops:
                yield
                self._close(self.parts[-1])
        except (TypeError, ValueError, AttributeError, KeyError, IndexError, RuntimeError) as error:
            message = f"{self._name} cannot be run without values: {error}"
            raise InputError(Finding("config", message, "compare the configuration with a published one")) from error

    def mark(self, finished: str, following: str) -> None:
        """End the current part under the name ``finished`` and begin the next."""
        self.parts[-1].name = finished
        self._close(self.parts[-1])
        self.parts.append(Part(following))

    def _close(self, part: Part) -> None:
        total = self._flops.get_total_flops()
        part.flop, self._flops_before = total - self._flops_before, total

    def _remember(
        self, tensor: torch.Tensor, *, follows_latent: bool, counted: bool, weights: frozenset[str] = frozenset()
    ) -> _Storage:
        storage = tensor.untyped_storage()
        self._keep.append(storage)
        here = len(self.parts) - 1
        entry = _Storage(storage.nbytes(), here, self._step, self._step, here, follows_latent, counted, weights, {})
        self._alive[storage._cdata] = entry
        return entry

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and note what it reads and makes."""
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        result = func(*args, **(kwargs or {}))
        self._step += 1
        here = len(self.parts) - 1
        follows = False
        behind: set[str] = set()  # the weights of what does not follow the latent
        for tensor in inputs:
            address = _address(tensor)
            if address in self._weights:
                self.parts[-1].weights.add(self._weights[address])
                behind.add(self._weights[address])
            elif address in self._alive:
                entry = self._alive[address]
                entry.read, entry.last_part = self._step, here
                entry.views[tensor.storage_offset(), *tensor.shape] = tensor.nbytes, here
                follows |= entry.follows_latent
                behind |= entry.weights
        if follows:
            self.parts[-1].borrowed |= behind - self.parts[-1].weights
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        made = False
        for tensor in outputs:
            address = _address(tensor)
            if address in self._alive:
                self._alive[address].follows_latent |= follows and func._schema.is_mutable
            elif address not in self._weights:
                kept = frozenset() if follows else frozenset(behind)
                self._remember(tensor, follows_latent=follows, counted=not self._fused, weights=kept)
                made = True
        if (made or func._schema.is_mutable) and not self._fused:
            self.count_kernel(inputs, outputs)
        return result

    def count_kernel(self, inputs: Iterable[torch.Tensor], outputs: Iterable[torch.Tensor]) -> None:
        """Count one launch and what it moves; weights apart, which are known by name."""
        part = self.parts[-1]
        part.num_kernels += 1
        moved = {id(tensor): tensor.nbytes for tensor in (*inputs, *outputs) if _address(tensor) not in self._weights}
        part.traffic_bytes += sum(moved.values())

    def cut_bytes(self) -> list[int]:
        """Bytes that cross a cut after each part but the last."""
        crossing = [0] * (len(self.parts) - 1)
        for entry in self._alive.values():
            if entry.follows_latent:
                for cut in range(entry.part, entry.last_part):
                    crossing[cut] += entry.read_after(cut)
        return crossing

    def peak_bytes(self) -> int:
        """Most bytes alive at once, from each tensor's making to its last reading."""
        changes: dict[int, int] = {}
        for entry in self._alive.values():
            if entry.counted:
                changes[entry.born] = changes.get(entry.born, 0) + entry.num_bytes
                changes[entry.read + 1] = changes.get(entry.read + 1, 0) - entry.num_bytes
        alive = peak = 0
        for step in sorted(changes):
            alive += changes[step]
            peak = max(peak, alive)
        return peak

    def weight_bytes(self, names: Iterable[str]) -> int:
        """Bytes of weights, by their names in ``state_dict``."""
        tensors = (self.tensors[name] for name in names)
        return sum(t.numel() * (self._itemsize if t.is_floating_point() else t.itemsize) for t in tensors)

    @property
    def weights(self) -> set[str]:
        """Names of all weights that were read."""
        return set().union(*(part.weights for part in self.parts))

    @property
    def common_weights(self) -> set[str]:
        """Names of the weights that some part needs and does not read itself: what they make crosses no cut."""
        return set().union(*(part.borrowed - part.weights for part in self.parts))

    @property
    def traffic_bytes(self) -> int:
        """Bytes that all kernels read and write, weights apart."""
        return sum(part.traffic_bytes for part in self.parts)

    @property
    def num_kernels(self) -> int:
        """Launches of all parts."""
        return sum(part.num_kernels for part in self.parts)

    @property
    def flop(self) -> int:
        """FLOPs of all parts."""
        return sum(part.flop for part in self.parts)


def _address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


class _Attention(TorchFunctionMode):
    """Let attention pass as one fused kernel: its score matrix is counted in FLOPs but takes no memory."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self._trace = trace

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not nn.functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        trace, outer = self._trace, self._trace._fused
        with ExitStack() as stack:
            stack.callback(setattr, trace, "_fused", outer)
            trace._fused = True
            result = func(*args, **(kwargs or {}))
        entry = trace._alive.get(_address(result))
        if entry is not None:
            entry.counted = True
        trace.count_kernel(args[:3], [result])
        return result
