"""A denoiser on some rows of its latent: what crosses a slab's edge is asked of whoever has it.

Convolutions need the rows next to their own, group norms the statistics of all rows, self-attention everybody's keys
and values; all else works row by row or token by token. Those leaves of the library's module are given another
``forward``, and nothing else of it is touched. With fresh exchanges the result is that of the whole image, up to the
order in which floats are added. For equal slabs: Li et al., DistriFusion, arXiv 2402.19481; Fang et al., xDiT,
arXiv 2411.01738. Slabs here may be of different heights.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from edgeopt.errors import Finding, InputError

__all__ = ["Exchange", "Recorder", "StandIn", "cut_into_slabs", "row_multiple"]

#: Blocks whose resampling is no convolution module.
_REFUSED = ("SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipUpBlock2D", "AttnSkipUpBlock2D")


class Exchange(ABC):
    """One slab's way to the others.

    Parameters
    ----------
    me
        Place among the slabs, from the top.
    rows
        Latent rows of every slab.
    """

    def __init__(self, me: int, rows: Sequence[int]) -> None:
        self.me, self.rows = me, tuple(rows)
        self.others = [k for k in range(len(rows)) if k != me]

    @abstractmethod
    def swap(
        self, kind: str, outgoing: Mapping[int, torch.Tensor], expected: Sequence[int]
    ) -> Mapping[int, torch.Tensor]:
        """Give tensors to some slabs and return those of the ``expected`` ones.

        ``kind`` is ``halo`` (edge rows), ``sums`` (statistics) or ``context`` (keys and values).
        """

    def gather(self, own: Sequence[torch.Tensor]) -> torch.Tensor:
        """Put everybody's tokens together, in the order of the slabs.

        Parameters
        ----------
        own
            Tensors (batch, tokens, width) that stand beside each other; they are copied once, into their place.
        """
        widths = [part.shape[2] for part in own]
        starts = [0, *accumulate(self.tokens(own[0].shape[1], k) for k in range(len(self.rows)))]
        every = own[0].new_empty(own[0].shape[0], starts[-1], sum(widths))
        place = every[:, starts[self.me] : starts[self.me + 1]]
        for piece, part in zip(place.split(widths, 2), own, strict=True):
            piece.copy_(part)
        for k, part in self.swap("context", dict.fromkeys(self.others, place), self.others).items():
            every[:, starts[k] : starts[k + 1]] = part
        return every

    def tokens(self, own: int, k: int) -> int:
        """Return how many tokens slab ``k`` has where this one has ``own``."""
        return own * self.rows[k] // self.rows[self.me]


class StandIn(Exchange):
    """The upper of two slabs, where nobody is at the other's place: what it hears means nothing, but has its shape."""

    def __init__(self, upper: int, lower: int) -> None:
        super().__init__(0, (upper, lower))

    def swap(
        self, kind: str, outgoing: Mapping[int, torch.Tensor], expected: Sequence[int]
    ) -> Mapping[int, torch.Tensor]:
        """Return what was given, over and over where the other slab has more of it."""
        if kind != "context":
            return {k: outgoing[k] for k in expected}
        counts = {k: (outgoing[k].shape[1], self.tokens(outgoing[k].shape[1], k)) for k in expected}
        return {k: outgoing[k][:, [i % own for i in range(count)]] for k, (own, count) in counts.items()}


class Recorder(StandIn):
    """Counts what the upper of two slabs gives to the lower."""

    def __init__(self, upper: int, lower: int) -> None:
        super().__init__(upper, lower)
        self.messages = {"halo": 0, "sums": 0, "context": 0}
        self.num_bytes = {"halo": 0, "sums": 0, "context": 0}

    def swap(
        self, kind: str, outgoing: Mapping[int, torch.Tensor], expected: Sequence[int]
    ) -> Mapping[int, torch.Tensor]:
        """Count, and return what was given."""
        self.messages[kind] += 1
        self.num_bytes[kind] += sum(tensor.nbytes for tensor in outgoing.values())
        return super().swap(kind, outgoing, expected)


def row_multiple(config: Mapping[str, Any]) -> int:
    """Return how many latent rows belong together: a patch's, or those that a row of the coarsest level stands for."""
    if "patch_size" in config:
        return int(config["patch_size"])
    return int(2 ** (len(config.get("block_out_channels", (1,) * 4)) - 1))


def cut_into_slabs(module: nn.Module, exchange: Exchange) -> None:
    """Let a denoiser work on its own slab; with a single slab it stays as it is.

    Raises
    ------
    InputError
        It holds something that is not known to be cut this way.
    """
    if len(exchange.rows) == 1:
        return
    for name, child in module.named_modules():
        kind = type(child).__name__
        if kind in _REFUSED:
            raise _refused(f"{name} ({kind}) resamples in a way that slabs do not know")
        if isinstance(child, nn.Conv2d):
            _conv(name, child, exchange)
        elif isinstance(child, nn.GroupNorm):
            child.forward = _group_norm(child, exchange)  # type: ignore[method-assign]
        elif kind.endswith("Attention") and kind != "Attention":
            raise _refused(f"{name} ({kind}) attends in a way that slabs do not know")
        elif kind == "Attention" and not child.is_cross_attention:
            _attention(child, exchange)
        elif kind == "PatchEmbed":
            _positions(name, child, exchange)
    if type(module).__name__ == "DiTTransformer2DModel":
        # The library puts patches together to squares only: own tokens stand in their place among zeros.
        module.proj_out_2.forward = _in_place(module.proj_out_2, exchange)  # type: ignore


def _conv(name: str, conv: nn.Conv2d, exchange: Exchange) -> None:
    """Ask for the row above, and below where the stride is 1, before the rows are convolved."""
    kernel, stride, padding = conv.kernel_size, conv.stride, conv.padding
    if kernel == stride and padding == (0, 0):
        return  # patches: each within one slab
    if kernel == (1, 1) and stride == (1, 1):
        return
    plain = conv.padding_mode == "zeros" and conv.dilation == (1, 1)
    if not (plain and kernel == (3, 3) and padding == (1, 1) and stride in ((1, 1), (2, 2))):
        raise _refused(f"{name} convolves {kernel} with stride {stride} and padding {padding}")
    above = exchange.me - 1 if exchange.me > 0 else None
    below = exchange.me + 1 if exchange.me + 1 < len(exchange.rows) else None

    def forward(x: torch.Tensor) -> torch.Tensor:
        outgoing = {} if below is None else {below: x[:, :, -1:]}
        expected = [] if above is None else [above]
        if stride == (1, 1):
            outgoing |= {} if above is None else {above: x[:, :, :1]}
            expected += [] if below is None else [below]
        edges = exchange.swap("halo", outgoing, expected)
        nothing = torch.zeros_like(x[:, :, :1])
        parts = [nothing if above is None else edges[above], x]
        if stride == (1, 1):
            parts.append(nothing if below is None else edges[below])
        padded = torch.cat(parts, 2)
        return functional.conv2d(padded, conv.weight, conv.bias, stride, (0, 1), 1, conv.groups)

    conv.forward = forward  # type: ignore[method-assign, assignment]


def _group_norm(norm: nn.GroupNorm, exchange: Exchange) -> Callable[[torch.Tensor], torch.Tensor]:
    """Normalise by mean and variance over all slabs, joined from each one's own (Chan, Golub, LeVeque, 1979)."""

    def forward(x: torch.Tensor) -> torch.Tensor:
        grouped = x.reshape(len(x), norm.num_groups, -1)
        wide = grouped if grouped.dtype in (torch.float32, torch.float64) else grouped.float()
        variance, mean = torch.var_mean(wide, -1, correction=0)
        own = torch.stack([mean, variance])
        every = {**exchange.swap("sums", dict.fromkeys(exchange.others, own), exchange.others), exchange.me: own}
        total = sum(exchange.rows)
        share = {k: exchange.rows[k] / total for k in every}
        middle = sum(share[k] * every[k][0].double() for k in every)
        spread = sum(share[k] * (every[k][1].double() + (every[k][0].double() - middle) ** 2) for k in every)
        scale = torch.rsqrt(spread + norm.eps)
        normal = (grouped - middle.to(x.dtype).unsqueeze(-1)) * scale.to(x.dtype).unsqueeze(-1)
        normal = normal.reshape(x.shape)
        if norm.weight is None:
            return normal
        ends = (1, -1, *(1,) * (x.dim() - 2))
        return normal * norm.weight.view(ends) + norm.bias.view(ends)

    return forward


def _attention(attention: Any, exchange: Exchange) -> None:
    """Attend to everybody's keys and values, which travel together."""
    keys, values = attention.to_k.forward, attention.to_v.forward
    held: list[torch.Tensor] = []

    def all_keys(x: torch.Tensor) -> torch.Tensor:
        key, value = keys(x), values(x)
        both = exchange.gather([key, value])
        held.append(both[..., key.shape[-1] :])
        return both[..., : key.shape[-1]]

    attention.to_k.forward = all_keys
    attention.to_v.forward = lambda x: held.pop()


def _positions(name: str, embed: Any, exchange: Exchange) -> None:
    """Keep the positions of the own rows."""
    if embed.pos_embed is None:
        return
    if embed.pos_embed_max_size is not None:
        raise _refused(f"{name} crops its positions by the image's size")
    total, width = sum(exchange.rows), embed.width
    if embed.height * embed.patch_size != total:
        raise _refused(f"{name} knows {embed.height * embed.patch_size} rows, the slabs have {total}")
    first = sum(exchange.rows[: exchange.me]) // embed.patch_size
    own = exchange.rows[exchange.me] // embed.patch_size
    embed.pos_embed = embed.pos_embed[:, first * width : (first + own) * width]
    embed.height = own


def _in_place(linear: nn.Linear, exchange: Exchange) -> Callable[[torch.Tensor], torch.Tensor]:
    plain = linear.forward

    def forward(x: torch.Tensor) -> torch.Tensor:
        out = plain(x)
        count, own = out.shape[1], exchange.rows[exchange.me]
        whole = out.new_zeros(len(out), count * sum(exchange.rows) // own, out.shape[2])
        first = count * sum(exchange.rows[: exchange.me]) // own
        whole[:, first : first + count] = out
        return whole

    return forward


def _refused(message: str) -> InputError:
    return InputError(Finding("model.variants", message, "use another denoiser, or another strategy"))
