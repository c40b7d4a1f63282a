"""Weights by parameter name, so that every process can hold its own part of a model and nothing else.

A module is built with parameters on the meta device (no memory), and only what a stage needs is filled in: read by
key from local safetensors files, or drawn at random from a seed and the parameter's NAME. A draw does not depend on
what else is drawn, so any split of a model has the same values as the whole.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from edgeopt.errors import Finding, InputError, MissingDependencyError
from edgeopt.profiles.model import Architecture

__all__ = ["Checkpoint", "RandomWeights", "WeightSource", "fill", "meta_parameters", "open_weights", "torch_dtype"]

#: Experts as one tensor, and what published files have in its place, for each expert: names of Qwen and of Mixtral.
_FUSED = re.compile(r"\.experts\.(gate_up_proj|down_proj)$")
_PUBLISHED = {"gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")), "down_proj": (("down_proj",), ("w2",))}


class WeightSource(Protocol):
    """Where a parameter's values come from."""

    def read(self, name: str, shape: torch.Size, rows: Sequence[int] | None = None) -> torch.Tensor:
        """Return the values of a parameter of the whole model, or some rows of them; ``shape`` is the whole one's."""
        ...


def torch_dtype(name: str) -> torch.dtype:
    """Return torch's dtype for a profile's dtype name.

    Raises
    ------
    InputError
        The dtype is one that programs cannot compute in (quantized weights).
    """
    if name not in ("float64", "float32", "bfloat16", "float16"):
        raise InputError(
            Finding("model.dtype", f"programs cannot compute in {name}", "use float32, bfloat16 or float16 to execute")
        )
    return getattr(torch, name)


@contextmanager
def meta_parameters() -> Iterator[None]:
    """Make modules constructed inside keep their parameters on the meta device, and their buffers for real.

    Buffers (rotary frequencies, positional tables) are computed by constructors and appear in no checkpoint.
    """
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.data.to("meta"), requires_grad=False)
        register(module, name, parameter)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def fill(
    module: nn.Module,
    source: WeightSource,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    rename: Callable[[str], str] = str,
    only: Container[str] | None = None,
) -> nn.Module:
    """Give a module's meta parameters their values.

    Parameters
    ----------
    module
        Built under :func:`meta_parameters`.
    source
        Values by name in the whole model.
    dtype, device
        Of the filled parameters.
    rename
        Maps a parameter's name inside ``module`` to its name in the whole model.
    only
        Names inside ``module`` to fill; the others stay without memory. ``None``: all.

    Returns
    -------
    Module
        The same module, in evaluation mode. Parameters that occur twice stay one tensor.
    """
    filled: dict[nn.Parameter, nn.Parameter] = {}
    for name, parameter in list(module.named_parameters(remove_duplicate=False)):
        if not parameter.is_meta or (only is not None and name not in only):
            continue
        if parameter not in filled:
            values = source.read(rename(name), parameter.shape)
            filled[parameter] = nn.Parameter(values.to(device=device, dtype=dtype), requires_grad=False)
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, filled[parameter])
    return module.eval()


class RandomWeights:
    """Values drawn per name: scaled so that activations neither vanish nor explode with depth and width.

    Matrices have variance 1 / fan-in, scales lie around one and offsets around zero; none is constant, so that a
    parameter in the wrong place changes the result.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def read(self, name: str, shape: torch.Size, rows: Sequence[int] | None = None) -> torch.Tensor:
        """Draw a parameter's values in float32, the same in every process whatever else it holds."""
        digest = hashlib.sha256(f"{self.seed}:{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        values = torch.randn(shape, generator=generator)
        if len(shape) > 1:
            fan_in = shape[-1] if len(shape) == 3 else values[0].numel()
            values.mul_(fan_in**-0.5)
        else:
            values.mul_(0.02)
            values = values.add_(1.0) if name.endswith("weight") else values
        return values if rows is None else values[list(rows)]


class Checkpoint:
    """Tensors of local safetensors files, read one by one by key.

    Parameters
    ----------
    path
        A ``.safetensors`` file, or a directory that holds one, or several with a ``.safetensors.index.json``.

    Raises
    ------
    InputError
        Nothing to read at ``path``.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path).expanduser()
        self._files = self._key_files()
        self._handles: dict[Path, object] = {}

    def read(self, name: str, shape: torch.Size, rows: Sequence[int] | None = None) -> torch.Tensor:
        """Read one tensor, or some rows of it.

        A key may carry a prefix that the module does not have (``text_model.``), as long as only one key fits. Experts
        are one tensor in `transformers` and one each in published files: both are read.

        Raises
        ------
        InputError
            No such key, or another shape than the architecture's configuration says.
        """
        if (match := _FUSED.search(name)) and self._found(name) is None:
            return self._experts(name, match[1], shape, range(shape[0]) if rows is None else rows)
        key = self._key(name)
        file: Any = self._open(self._files[key])
        found = torch.Size(file.get_slice(key).get_shape())
        if found != shape:
            raise InputError(
                Finding(
                    "architecture.config",
                    f"'{key}' in checkpoint {self.path} has shape {tuple(found)}, the model expects {tuple(shape)}",
                    "make the configuration the checkpoint's own (its config.json)",
                )
            )
        if rows is None:
            return torch.as_tensor(file.get_tensor(key))
        return torch.cat([file.get_slice(key)[row : row + 1] for row in rows])

    def _experts(self, name: str, kind: str, shape: torch.Size, rows: Sequence[int]) -> torch.Tensor:
        """Put experts together that are stored one by one."""
        stem = name[: -len(kind)]
        names = next(
            (n for n in _PUBLISHED[kind] if self._found(f"{stem}{rows[0]}.{n[0]}.weight")), _PUBLISHED[kind][0]
        )
        each = torch.Size((shape[1] // len(names), shape[2]))
        return torch.stack(
            [torch.cat([self.read(f"{stem}{row}.{part}.weight", each) for part in names]) for row in rows]
        )

    def _found(self, name: str) -> str | None:
        """Return the key that is meant by a name, ``None`` if none is or several might be."""
        for known in (name, name.replace(".mlp.", ".block_sparse_moe.")):  # published Mixtrals say the latter
            if known in self._files:
                return known
            fits = [key for key in self._files if key.endswith(f".{known}")]
            if len(fits) == 1:
                return fits[0]
        return None

    def _key(self, name: str) -> str:
        if (found := self._found(name)) is not None:
            return found
        raise InputError(
            Finding(
                "architecture.checkpoint",
                f"checkpoint {self.path} has no '{name}' (it has {len(self._files)} tensors, such as "
                f"{', '.join(repr(key) for key in sorted(self._files)[:3])})",
                "give the checkpoint of this architecture, or drop it for random weights",
            )
        )

    def _key_files(self) -> dict[str, Path]:
        if self.path.is_file():
            return dict.fromkeys(self._keys(self.path), self.path)
        if index := next(iter(sorted(self.path.glob("*.safetensors.index.json"))), None):
            return {key: self.path / file for key, file in json.loads(index.read_text())["weight_map"].items()}
        files = sorted(self.path.glob("*.safetensors"))
        if not files:
            raise InputError(
                Finding(
                    "architecture.checkpoint",
                    f"no .safetensors file at {self.path}",
                    "name a local file or directory; nothing is downloaded",
                )
            )
        # Next to the plain file there may be copies in other precisions (model.fp16.safetensors): the plain one first.
        plain = [file for file in files if file.name.count(".") == 1]
        return dict.fromkeys(self._keys((plain or files)[0]), (plain or files)[0])

    def _keys(self, file: Path) -> list[str]:
        return list(self._open_new(file).keys())  # type: ignore[attr-defined]

    def _open(self, file: Path) -> object:
        if file not in self._handles:
            self._handles[file] = self._open_new(file)
        return self._handles[file]

    @staticmethod
    def _open_new(file: Path) -> object:
        try:
            from safetensors import safe_open
        except ImportError as error:
            raise MissingDependencyError("safetensors", "torch", "reading a checkpoint") from error
        try:
            return safe_open(file, framework="pt", device="cpu")
        except Exception as error:  # safetensors raises its own kinds for a missing, short or foreign file
            raise InputError(
                Finding("architecture.checkpoint", f"cannot read {file}: {error}", "give intact safetensors files")
            ) from error


def open_weights(architecture: Architecture) -> WeightSource:
    """Return the source an architecture names: its checkpoint, or random values from its seed."""
    return Checkpoint(architecture.checkpoint) if architecture.checkpoint else RandomWeights(architecture.seed)
