"""A forward pass written down as calls, so that any range of a denoiser's blocks can be run on its own.

The library's own forward is run once without memory (torch's meta device) and every call of a torch function is
noted, with the tensors that it reads and makes. What follows from the latent happens in one place; what follows from
the timestep, the conditioning or weights alone is repeated by whoever needs it. So a piece (blocks ``start`` to
``stop``) is: the calls inside it that follow the latent, and whatever they need that does not. It receives every tensor
that was made before, follows the latent and is read later: a U-Net's skips, both streams of a two-stream transformer.
Nothing here is written per architecture, and the very calls are replayed: results are those of the library to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from edgeopt.errors import Finding, InputError
from edgeopt.programs.blocks import OUTPUT, mark_blocks

__all__ = ["Piece", "Recording", "record"]


_MEND = "run this denoiser whole (strategy multi_stage)"


class _Ref(int):
    """Number of a tensor, in the place of the tensor."""


@dataclass(frozen=True, slots=True)
class _Call:
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    reads: tuple[int, ...]
    makes: tuple[int, ...]
    part: int
    follows: bool


@dataclass(frozen=True, slots=True)
class _Value:
    """What is known of a tensor; ``weight``: its name in the module, where it is a parameter or a buffer."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    part: int
    follows: bool
    weight: str | None = None


class _Recorder(TorchFunctionMode):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.calls: list[_Call] = []
        self.values: list[_Value] = []
        self.parts: list[str] = []
        self._numbers: dict[int, int] = {}
        self._keep: list[torch.Tensor] = []  # tensors are told apart by identity, so none may be freed
        for tensors in (module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False)):
            for name, tensor in tensors:
                if id(tensor) not in self._numbers:
                    self.add(tensor, follows=False, weight=name)

    def add(self, tensor: torch.Tensor, *, follows: bool, weight: str | None = None) -> int:
        self._keep.append(tensor)
        number = _Ref(len(self.values))
        self._numbers[id(tensor)] = number
        self.values.append(_Value(tuple(tensor.shape), tensor.dtype, len(self.parts), follows, weight))
        return number

    def number(self, tensor: torch.Tensor) -> int:
        return self._numbers[id(tensor)]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        written = [args[0]] if getattr(func, "__name__", "") == "__setitem__" else []
        if not made and not written:
            return result  # a shape, a dtype: it is the same whenever this is replayed
        reads = tuple(self._known(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor))
        follows = any(self.values[number].follows for number in reads)
        args, kwargs = self._numbered(args), self._numbered(kwargs)
        makes = tuple(self.add(tensor, follows=follows) for tensor in (*made, *written))
        self.calls.append(_Call(func, args, kwargs, reads, makes, len(self.parts), follows))
        return result

    def _known(self, tensor: torch.Tensor) -> int:
        if id(tensor) not in self._numbers:
            raise InputError(
                Finding("architecture.class", "its forward pass reads a tensor that no torch call made", _MEND)
            )
        return self._numbers[id(tensor)]

    def _numbered(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self._numbers[id(value)]
        if type(value) in (list, tuple):
            return type(value)(self._numbered(each) for each in value)
        if type(value) is dict:
            return {key: self._numbered(each) for key, each in value.items()}
        return value


@dataclass(frozen=True, slots=True)
class Recording:
    """One pass of a denoiser, in parts: the input, its blocks, the output.

    Attributes
    ----------
    parts
        Names in order of execution.
    """

    parts: tuple[str, ...]
    calls: tuple[_Call, ...]
    values: tuple[_Value, ...]
    arguments: tuple[int, ...]
    result: int

    def crossing(self, cut: int) -> list[int]:
        """Numbers of the tensors that are alive between part ``cut - 1`` and part ``cut``, in order of making.

        At 0 the latent alone, at the end the prediction alone.
        """
        if cut == 0:
            return [self.arguments[0]]
        if cut == len(self.parts):
            return [self.result]
        read = {number for call in self.calls if call.part >= cut and call.follows for number in call.reads}
        return sorted(n for n in read if self.values[n].follows and self.values[n].part < cut)

    def specs(self, cut: int) -> list[tuple[tuple[int, ...], torch.dtype]]:
        """Shapes and dtypes of what crosses a cut."""
        return [(self.values[number].shape, self.values[number].dtype) for number in self.crossing(cut)]

    def calls_of(self, start: int, stop: int) -> list[_Call]:
        """Calls that parts ``start`` to ``stop`` need: their own, and those that feed them without the latent."""
        needed: set[int] = {self.result} if stop == len(self.parts) else set()
        chosen = []
        for call in reversed(self.calls):
            own = call.follows and start <= call.part < stop
            if own or (not call.follows and not needed.isdisjoint(call.makes)):
                chosen.append(call)
                needed.update(call.reads)
        return chosen[::-1]

    def weights_of(self, start: int, stop: int) -> list[str]:
        """Names of the parameters and buffers that parts ``start`` to ``stop`` read."""
        numbers = dict.fromkeys(number for call in self.calls_of(start, stop) for number in call.reads)
        return [name for number in numbers if (name := self.values[number].weight) is not None]


class Piece:
    """Parts ``start`` to ``stop`` of a recording, with weights, ready to run.

    Parameters
    ----------
    module
        Holds the tensors that :meth:`Recording.weights_of` names.
    """

    def __init__(self, recording: Recording, start: int, stop: int, module: nn.Module, device: torch.device) -> None:
        tensors = {
            **dict(module.named_parameters(remove_duplicate=False)),
            **dict(module.named_buffers(remove_duplicate=False)),
        }
        self._device = device
        self._arguments, self._inputs = recording.arguments, recording.crossing(start)
        self._outputs = recording.crossing(stop)
        calls = recording.calls_of(start, stop)
        self._base: list[torch.Tensor | None] = [None] * len(recording.values)
        for number in {number for call in calls for number in call.reads}:
            if (name := recording.values[number].weight) is not None:
                self._base[number] = tensors[name]
        self._steps = self._schedule(calls, stop)

    def _schedule(self, calls: Sequence[_Call], stop: int) -> list[tuple[Any, ...]]:
        """Calls in order, each with what may be forgotten after it and which parts end with it."""
        last = {number: k for k, call in enumerate(calls) for number in (*call.reads, *call.makes)}
        kept = {*self._outputs, *(n for n, tensor in enumerate(self._base) if tensor is not None)}
        forget: list[list[int]] = [[] for _ in calls]
        for number, k in last.items():
            if number not in kept:
                forget[k].append(number)
        ends: list[range] = []
        following = stop
        for call in reversed(calls):
            ends.append(range(call.part, following) if call.follows else range(0))
            following = call.part if call.follows else following
        return [
            (call.function, _here(call.args, self._device), _here(call.kwargs, self._device), call.makes, gone, ended)
            for call, gone, ended in zip(calls, forget, reversed(ends), strict=True)
        ]

    def run(
        self,
        features: Sequence[torch.Tensor],
        timestep: torch.Tensor,
        conditioning: Sequence[torch.Tensor],
        on_part: Callable[[int], None] | None = None,
    ) -> list[torch.Tensor]:
        """Compute what crosses the cut after the piece from what crosses the one before it.

        Parameters
        ----------
        features
            The latent for the first piece; as :meth:`Recording.crossing` orders them.
        on_part
            Called with each part's index as soon as it is done.
        """
        values = self._base.copy()
        for number, tensor in zip(self._arguments[1:], (timestep, *conditioning), strict=True):
            values[number] = tensor
        for number, tensor in zip(self._inputs, features, strict=True):
            values[number] = tensor
        with nullcontext() if self._device.type == "cpu" else self._device:
            for function, args, kwargs, makes, forget, ends in self._steps:
                result = function(*_filled(args, values), **_filled(kwargs, values))
                for number, tensor in zip(makes, _tensors(result) or (_filled(args[0], values),), strict=True):
                    values[number] = tensor
                for number in forget:
                    values[number] = None
                if on_part is not None:
                    for part in ends:
                        on_part(part)
        return [values[number] for number in self._outputs]  # type: ignore[misc]


def _here(value: Any, device: torch.device) -> Any:
    """Replace the device that the recording was made on."""
    if isinstance(value, torch.device):
        return device if value.type == "meta" else value
    if type(value) in (list, tuple):
        return type(value)(_here(each, device) for each in value)
    if type(value) is dict:
        return {key: _here(each, device) for key, each in value.items()}
    return value


def _filled(value: Any, values: Sequence[torch.Tensor | None]) -> Any:
    kind = type(value)
    if kind is _Ref:
        return values[value]
    if kind is tuple or kind is list:
        return kind([_filled(each, values) for each in value])
    if kind is dict:
        return {key: _filled(each, values) for key, each in value.items()}
    return value


def _tensors(result: Any) -> tuple[torch.Tensor, ...]:
    if isinstance(result, torch.Tensor):
        return (result,)
    return tuple(leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor))


def record(module: nn.Module, forward: Callable[..., torch.Tensor], arguments: Sequence[torch.Tensor]) -> Recording:
    """Run ``forward(module, latent, timestep, *conditioning)`` once and write it down.

    Parameters
    ----------
    module
        On the meta device, buffers too.
    arguments
        Latent, timestep and the tensors of the conditioning, on the meta device.
    """
    latent = arguments[0]
    recorder = _Recorder(module)
    numbers = [recorder.add(tensor, follows=tensor is latent) for tensor in arguments]
    mark_blocks(module, recorder.parts.append)
    with torch.device("meta"), torch.no_grad(), recorder:
        prediction = forward(module, *arguments)
    recorder.parts.append(OUTPUT)
    result = recorder.number(prediction)
    return Recording(tuple(recorder.parts), tuple(recorder.calls), tuple(recorder.values), tuple(numbers), result)
