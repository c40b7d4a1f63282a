"""A mixture of experts spread over parties: the trunk sends states to whoever holds the experts that its gates choose.

The trunk is the library's own model with its experts' computing replaced (:class:`Spread`). Each party computes its
experts with the library's own class and weights them no further; the trunk weighs and adds what comes back in the
library's order, so that sums are those of a single process, bit for bit where products of matrices are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from edgeopt.errors import Finding, InputError
from edgeopt.executor.layout import Layout
from edgeopt.plan import Plan
from edgeopt.profiles.model import Architecture, CausalLM
from edgeopt.profiles.problem import TextWorkload
from edgeopt.programs.language import LanguagePart, build_model, model_config
from edgeopt.programs.mixtures import HeldExperts, expert_layers
from edgeopt.programs.parties import Links, PartyProgram
from edgeopt.programs.placing import stage_device, stage_threads, threads_restored
from edgeopt.programs.quantised import fill_quantised
from edgeopt.programs.speculative import draw_prompt
from edgeopt.programs.weights import WeightSource, fill, open_weights, torch_dtype

__all__ = ["TOLERANCE", "Experts", "Shares", "Spread", "build", "reference"]

#: Tokens are integers: nothing but equality counts.
TOLERANCE: float | None = None

#: The trunk's stage.
_TRUNK = 0


class Shares:
    """Which party serves each (token, expert) of a layer: copies take turns, in proportion to their shares.

    Parameters
    ----------
    rows
        For each expert the ranks that hold it, with the part of its tokens that each serves.
    """

    def __init__(self, rows: Sequence[Mapping[int, float]]) -> None:
        self._rows = [{rank: part for rank, part in row.items() if part > 0} for row in rows]
        self._home = torch.tensor([next(iter(row)) for row in self._rows])
        self._several = [e for e, row in enumerate(self._rows) if len(row) > 1]
        self.reset()

    def reset(self) -> None:
        """Begin anew: the first token of every request goes the same way."""
        self._served = [dict.fromkeys(row, 0) for row in self._rows]

    def __call__(self, chosen: torch.Tensor) -> torch.Tensor:
        """Return the rank for each entry of ``chosen``, experts by token and place, (tokens, k) int64."""
        ranks = self._home[chosen]
        for e in self._several:
            for token, place in (chosen == e).nonzero().tolist():
                ranks[token, place] = self._next(e)
        return ranks

    def _next(self, e: int) -> int:
        row, served = self._rows[e], self._served[e]
        total = sum(served.values()) + 1
        rank = max(row, key=lambda each: row[each] * total - served[each])
        served[rank] += 1
        return rank


class Spread(nn.Module):
    """Stands in the place of a layer's experts: asks those who hold them, computes its own, and adds up.

    Parameters
    ----------
    layer
        Index of the layer in the model.
    own
        Experts that the trunk holds itself, ``None`` for none.
    """

    def __init__(self, layer: int, shares: Shares, own: HeldExperts | None) -> None:
        super().__init__()
        self.layer, self.shares = layer, shares
        self.own = own
        self.turn: _Turn | None = None

    def forward(self, states: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Compute the experts of each token.

        Parameters
        ----------
        states : (tokens, hidden)
        chosen : (tokens, k) int64
            Experts by token.
        weights : (tokens, k)
            Of their contributions.

        Returns
        -------
        (tokens, hidden)
        """
        turn = self.turn
        assert turn is not None, "play() sets it"
        ranks = self.shares(chosen.cpu())
        asked = []
        rows = states.new_empty((*chosen.shape, states.shape[-1]))
        mine: tuple[torch.Tensor, torch.Tensor] | None = None
        serving = torch.unique(ranks).tolist()
        if serving != [turn.rank]:
            turn.pause()
        for rank in serving:
            tokens, places = (ranks == rank).nonzero(as_tuple=True)
            if rank == turn.rank:
                mine = tokens, places
                continue
            sent, row = torch.unique(tokens, return_inverse=True)
            index = torch.stack([chosen.cpu()[tokens, places], row]).int()
            turn.send(rank, [torch.tensor([self.layer, turn.round_index]), index, states[sent]])
            asked.append((rank, tokens, places))
        if mine is not None:
            assert self.own is not None, "the plan's shares are the trunk's own"
            rows[mine] = self.own(states[mine[0]], chosen[mine])
        if asked:
            with turn.waiting():
                answers = [turn.receive(rank) for rank, _, _ in asked]
            for (_, tokens, places), answer in zip(asked, answers, strict=True):
                rows[tokens, places] = answer.to(rows)
        return (rows * weights.unsqueeze(-1)).sum(dim=1).to(states.dtype)


class _Turn:
    """The trunk's computing of one step, interrupted wherever it waits."""

    def __init__(self, links: Links, round_index: int) -> None:
        self.rank, self.round_index, self._links = links.rank, round_index, links
        self._computing: contextlib.AbstractContextManager[None] | None = None

    def __enter__(self) -> _Turn:
        self._computing = self._links.computing(_TRUNK, self.round_index)
        self._computing.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._computing is not None:
            computing, self._computing = self._computing, None
            computing.__exit__(*error)

    @contextlib.contextmanager
    def waiting(self) -> Any:
        """Stop the clock: waiting is not computing."""
        self.__exit__(None, None, None)
        yield
        self.__enter__()

    def pause(self) -> None:
        """End a piece of computing and begin another: a device that is slowed down rests before it asks, not after."""
        self.__exit__(None, None, None)
        self.__enter__()

    def send(self, rank: int, tensors: list[torch.Tensor]) -> None:
        """Ask a party."""
        self._links.send(rank, tensors, "dispatch")

    def receive(self, rank: int) -> torch.Tensor:
        """Take its answer."""
        return self._links.receive(rank)[0]


class Experts(PartyProgram):
    """Source, trunk and holders of experts; a process may be source and one of the others."""

    def __init__(self, plan: Plan, stages: Sequence[int]) -> None:
        super().__init__(plan, stages)
        self._model, self._architecture, self._load = _inputs(plan)
        self._layout = Layout.of(plan)
        self._ranks = {host.device: host.rank for host in self._layout.hosts}
        self._trunk_rank = self._layout.host_of(_TRUNK).rank
        config = model_config(self._architecture)
        width = config.hidden_size * torch_dtype(self._model.dtype).itemsize + 8
        rows = self._load.batch * self._load.prompt_tokens * config.num_experts_per_tok
        self.max_message_bytes = max(1 << 16, rows * width + 64, 8 * self._load.batch * self._load.new_tokens)
        self._held: dict[int, HeldExperts] = {}
        self._part: LanguagePart | None = None
        self._spread: list[Spread] = []
        for index in self.stages:
            self._held = self._hold(index)
            if index == _TRUNK:
                self._part = self._trunk()

    def _hold(self, index: int) -> dict[int, HeldExperts]:
        """Load the experts of a stage, by layer."""
        device, found = self.plan.stages[index].device, {}
        source = open_weights(self._architecture)
        templates = expert_layers(build_model(self._architecture, model_config(self._architecture)))
        if len(templates) != len(self._placement):
            message = f"its architecture has {len(templates)} layers with experts, the plan {len(self._placement)}"
            raise InputError(Finding("model.layers", message, "let the layers that have `experts:` be those"))
        for (layer, template), rows in zip(templates.items(), self._placement, strict=True):
            if mine := [e for e, row in enumerate(rows) if device in row]:
                found[layer] = HeldExperts(
                    template, layer, mine, source, weights=self.plan.stages[index].variant,
                    dtype=torch_dtype(self._model.dtype), device=stage_device(self.plan, index),
                )  # fmt: skip
        return found

    @property
    def _placement(self) -> list[list[dict[str, float]]]:
        """Devices and shares by layer and expert."""
        return list(self.plan.decisions["experts"].values())  # type: ignore[union-attr, arg-type, return-value]

    def _trunk(self) -> LanguagePart:
        def adapt(model: nn.Module) -> None:
            blocks: Any = model.model.layers  # type: ignore[union-attr]
            for layer, rows in zip(expert_layers(model), self._placement, strict=True):
                shares = Shares([{self._ranks[name]: part for name, part in row.items()} for row in rows])
                self._spread.append(Spread(layer, shares, self._held.get(layer)))
                blocks[layer].mlp.experts = self._spread[-1]

        return LanguagePart(
            self._architecture,
            0,
            model_config(self._architecture).num_hidden_layers + 2,
            dtype=torch_dtype(self._model.dtype),
            device=stage_device(self.plan, _TRUNK),
            max_tokens=self._load.prompt_tokens + self._load.new_tokens,
            adapt=adapt,
            weights=self.plan.stages[_TRUNK].variant,
        )

    def request(self, seed: int) -> list[torch.Tensor]:
        """Draw a prompt, (batch, prompt_tokens) int64."""
        return [draw_prompt(self._model, self._load, seed)]

    def begin(self) -> None:
        """Empty the caches; copies of experts take turns anew."""
        if self._part is not None:
            self._part.reset()
        for spread in self._spread:
            spread.shares.reset()

    def play(self, links: Links, inputs: list[torch.Tensor] | None) -> list[torch.Tensor] | None:
        """Feed, generate, compute experts or collect."""
        with torch.inference_mode():
            if inputs is not None and self._trunk_rank != 0:
                links.send(self._trunk_rank, inputs, "input")
            if self._part is not None:
                prompt = (inputs or links.receive(0))[0]
                result = self._generate(links, prompt)
                if links.rank != 0:
                    links.send(0, [result], "output")
                return [result] if links.rank == 0 else None
            if self.stages:
                self._serve(links)
        return links.receive(self._trunk_rank) if links.rank == 0 else None

    def _generate(self, links: Links, prompt: torch.Tensor) -> torch.Tensor:
        """Play the trunk: all tokens, (batch, new_tokens)."""
        part, made, x = self._part, [], prompt
        assert part is not None
        for round_index in range(self._load.new_tokens):
            turn = _Turn(links, round_index)
            for spread in self._spread:
                spread.turn = turn
            with turn:
                x = part(x.to(part.device))
                made.append(x.cpu())
        for stage in range(1, len(self.plan.stages)):
            links.send(self._layout.host_of(stage).rank, [], "end")
        return torch.cat(made, dim=1)

    def _serve(self, links: Links) -> None:
        """Compute experts until the trunk has all its tokens."""
        (stage,) = self.stages
        while message := links.receive(self._trunk_rank):
            (layer, round_index), index, states = message[0].tolist(), message[1].long(), message[2]
            with links.computing(stage, round_index):
                held = self._held[layer]
                rows = held(states.to(held.device)[index[1]], index[0])
            links.send(self._trunk_rank, [rows], "combine")


def build(plan: Plan, stages: Sequence[int]) -> Experts:
    """Load the stages that this process hosts."""
    return Experts(plan, stages)


class _Gathered(nn.Module):
    """A layer's experts in one process, each in the format of the stage that serves a token's.

    Parameters
    ----------
    shares
        Stages in the place of ranks.
    held
        Experts by stage.
    """

    def __init__(self, shares: Shares, held: Mapping[int, HeldExperts]) -> None:
        super().__init__()
        self.shares, self.held = shares, held

    def forward(self, states: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        stages = self.shares(chosen)
        rows = states.new_empty((*chosen.shape, states.shape[-1]))
        for stage in torch.unique(stages).tolist():
            tokens, places = (stages == stage).nonzero(as_tuple=True)
            rows[tokens, places] = self.held[stage](states[tokens], chosen[tokens, places])
        return (rows * weights.unsqueeze(-1)).sum(dim=1).to(states.dtype)


def _store(plan: Plan, model: Any, source: WeightSource, dtype: torch.dtype) -> None:
    """Store trunk and experts of a whole model in the formats of the plan's stages."""
    placement: Any = plan.decisions["experts"]
    stages = {stage.device: stage.index for stage in plan.stages}
    for (layer, template), rows in zip(expert_layers(model).items(), placement.values(), strict=True):
        held = {
            stage.index: HeldExperts(template, layer, mine, source, dtype=dtype, weights=stage.variant)
            for stage in plan.stages
            if (mine := [e for e, row in enumerate(rows) if stage.device in row])
        }
        shares = Shares([{stages[name]: part for name, part in row.items()} for row in rows])
        model.model.layers[layer].mlp.experts = _Gathered(shares, held)
    for number, block in enumerate(model.model.layers):
        prefix = f"model.layers.{number}."
        fill_quantised(block, source, plan.stages[_TRUNK].variant, dtype=dtype, rename=prefix.__add__)


def reference(plan: Plan, seed: int) -> list[torch.Tensor]:
    """Generate with the whole model in this process through the library's own ``generate``.

    Where stages store weights in fewer bits, so does it.

    Returns
    -------
    list of one tensor, (batch, new_tokens) int64
    """
    profile, architecture, load = _inputs(plan)
    config = model_config(architecture)
    model: Any = build_model(architecture, config)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    source, dtype = open_weights(architecture), torch_dtype(profile.dtype)
    if any(stage.variant is not None for stage in plan.stages):
        _store(plan, model, source, dtype)
    fill(model, source, dtype=dtype)
    model.generation_config.eos_token_id = None
    prompt, threads = draw_prompt(profile, load, seed), stage_threads(plan, _TRUNK)
    with torch.inference_mode(), threads_restored():
        if threads is not None:
            torch.set_num_threads(threads)
        tokens = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=load.new_tokens, do_sample=False,
            num_beams=1, pad_token_id=0,
        )  # fmt: skip
    return [tokens[:, load.prompt_tokens :].clone()]


def _inputs(plan: Plan) -> tuple[CausalLM, Architecture, TextWorkload]:
    model, load = plan.problem.model, plan.problem.workload
    if not isinstance(model, CausalLM) or not isinstance(load, TextWorkload):
        message = "the experts program runs causal_lm models on text workloads"
        raise InputError(Finding("model.family", message, "change the strategy"))
    if model.architecture is None:
        message = f"'{model.name}' says nothing to build it from"
        raise InputError(Finding("model.architecture", message, "add `architecture:`"))
    return model, model.architecture, load
