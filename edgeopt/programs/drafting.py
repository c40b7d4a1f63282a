"""The two sides of speculative decoding: a draft that guesses and a target that checks, with caches that roll back.

At temperature 0 the tokens are those that the target alone would take. Above, they are distributed as if it alone had
sampled (Leviathan et al., arXiv 2211.17192): a guess x that the draft gave q(x) and the target p(x) is taken with
probability p(x) / q(x), and the first that is not is replaced by a draw from max(0, p - q), scaled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from edgeopt.errors import Finding, InputError
from edgeopt.profiles.model import Architecture
from edgeopt.programs.language import LanguagePart, model_config

__all__ = ["CachedScorer", "Drafter", "Verifier", "WholeScorer", "taken"]

#: What the drafter's and the verifier's random numbers start from, beside the request's seed.
_DRAFTER, _VERIFIER = 1, 2


class CachedScorer(LanguagePart):
    """A model, or elements ``start`` to ``stop`` of it, that scores new tokens on cached ones and can forget them."""

    def __init__(self, architecture: Architecture, start: int = 0, stop: int | None = None, **options: Any) -> None:
        config = model_config(architecture)
        kinds = set(getattr(config, "layer_types", None) or ())
        if getattr(config, "sliding_window", None) or kinds - {"full_attention"}:
            message = f"{architecture.class_name} has sliding windows, whose caches cannot be rolled back"
            raise InputError(Finding("model.architecture.config", message, "use a model with full attention"))
        super().__init__(architecture, start, config.num_hidden_layers + 2 if stop is None else stop, **options)

    @property
    def num_cached(self) -> int:
        """Tokens in the cache."""
        return self._past

    def keep(self, num_tokens: int) -> None:
        """Forget all but the first tokens."""
        for layer in self._cache.layers:
            layer.keys, layer.values = (x[..., :num_tokens, :] for x in (layer.keys, layer.values))
        self._past = num_tokens

    def score(self, new: Sequence[int] | torch.Tensor, last: int) -> torch.Tensor:
        """Add new tokens.

        Parameters
        ----------
        new
            Tokens where the part begins with the embedding; elsewhere hidden states, (1, tokens, hidden).
        last
            After how many of them, the last ones, logits are wanted.

        Returns
        -------
        (last, vocabulary) float32, or (1, tokens, hidden)
            Logits, or hidden states of all new tokens where the part does not end with the head.
        """
        x: torch.Tensor
        if self.embed is not None:
            x = self.embed(torch.tensor([list(new)], device=self.device))
        else:
            assert isinstance(new, torch.Tensor)
            x = new.to(self.device)
        x = self._blocks(x) if self.layers else x
        if self.norm is None or self.head is None:
            return x
        logits: torch.Tensor = self.head(self.norm(x[:, -last:]))
        return logits[0].float().cpu()


class WholeScorer:
    """The same by the library's own model without a cache: every token is computed anew each time."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._tokens: list[int] = []

    @property
    def num_cached(self) -> int:
        """Tokens known so far."""
        return len(self._tokens)

    def keep(self, num_tokens: int) -> None:
        """Forget all but the first tokens."""
        del self._tokens[num_tokens:]

    def score(self, new: Sequence[int] | torch.Tensor, last: int) -> torch.Tensor:
        """As :meth:`CachedScorer.score`."""
        self._tokens += [int(token) for token in new]
        return self._model(torch.tensor([self._tokens]), use_cache=False).logits[0, -last:].float()


def taken(
    guesses: Sequence[int], guessed: torch.Tensor, wanted: torch.Tensor, generator: torch.Generator
) -> tuple[int, int]:
    """Take guesses by rejection sampling, so that what comes out is distributed as the target's own samples.

    Parameters
    ----------
    guesses
        γ tokens, drawn from ``guessed``.
    guessed : (γ, vocabulary)
        The draft's probabilities.
    wanted : (γ + 1, vocabulary)
        The target's.

    Returns
    -------
    int, int
        How many guesses are taken, and the token after them.
    """
    for position, token in enumerate(guesses):
        p, q = wanted[position].double(), guessed[position].double()
        if torch.rand((), generator=generator, dtype=torch.float64) * q[token] < p[token]:
            continue
        rest = (p - q).clamp(min=0)
        return position, _draw(rest if float(rest.sum()) > 0 else p, generator)
    return len(guesses), _draw(wanted[len(guesses)].double(), generator)


def _draw(weights: torch.Tensor, generator: torch.Generator) -> int:
    return int(torch.multinomial(weights, 1, generator=generator))


class _Side:
    """A model, the tokens that are settled, and a way to choose."""

    def __init__(self, scorer: CachedScorer | WholeScorer, temperature: float, seed: int, role: int) -> None:
        self.scorer, self.temperature = scorer, temperature
        self.settled: list[int] = []
        self.generator = torch.Generator().manual_seed(2**20 * role + seed)

    def score(self, guesses: Sequence[int], last: int) -> torch.Tensor:
        """Feed what the scorer has not seen of the settled tokens and the guesses; logits after the last of them."""
        return self.scorer.score([*self.settled, *guesses][self.scorer.num_cached :], last)

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Softmax at the temperature."""
        return torch.softmax(logits / self.temperature, -1)

    def settle(self, tokens: Sequence[int]) -> None:
        """Add tokens to the settled ones, and forget what the scorer saw beyond them or instead of them."""
        self.settled += tokens
        # The last token is new to the scorer; those before it are what was guessed and taken.
        self.scorer.keep(min(self.scorer.num_cached, len(self.settled) - 1))


class Drafter(_Side):
    """Guesses tokens."""

    def __init__(self, scorer: CachedScorer | WholeScorer, temperature: float, seed: int) -> None:
        super().__init__(scorer, temperature, seed, _DRAFTER)

    def start(self, prompt: list[int]) -> None:
        """Read the prompt."""
        self.settled = list(prompt)
        self.scorer.score(prompt, 1)

    def guess(self, count: int, stop_below: float = 0.0, at_least: int = 1) -> tuple[list[int], torch.Tensor]:
        """Return ``count`` tokens and the probabilities that they were drawn from (empty at temperature 0).

        At temperature 0 there may be fewer, though not fewer than ``at_least``: the draft stops once it thinks that all
        of its guesses are right with less than the probability ``stop_below``.
        """
        guesses: list[int] = []
        rows = []
        sure = 1.0
        while len(guesses) < count and (sure >= stop_below or len(guesses) < at_least):
            logits = self.score(guesses, 1)[-1]
            if self.temperature == 0:
                guesses.append(int(logits.argmax()))
                sure *= float(torch.softmax(logits, -1)[guesses[-1]]) if stop_below else 1.0
                continue
            rows.append(self.probabilities(logits))
            guesses.append(_draw(rows[-1].double(), self.generator))
        return guesses, torch.stack(rows) if rows else torch.empty(0)


class Verifier(_Side):
    """Checks guesses."""

    def __init__(self, scorer: CachedScorer | WholeScorer, temperature: float, seed: int) -> None:
        super().__init__(scorer, temperature, seed, _VERIFIER)

    def start(self, prompt: list[int], hidden: torch.Tensor | None = None) -> int:
        """Read the prompt, or what earlier stages made of it, and return the first token."""
        token = self._choose(self.scorer.score(prompt if hidden is None else hidden, 1), [], torch.empty(0))[1]
        self.settled = [*prompt, token]
        return token

    def check(self, guesses: list[int], guessed: torch.Tensor) -> tuple[int, int]:
        """Return how many guesses are taken and the token after them."""
        return self.take(self.passed(guesses), guesses, guessed)

    def passed(self, guesses: list[int], hidden: torch.Tensor | None = None) -> torch.Tensor:
        """Return the logits after the last settled token and each guess, or after what earlier stages made of them."""
        rows = len(guesses) + 1
        return self.score(guesses, rows) if hidden is None else self.scorer.score(hidden, rows)

    def take(self, logits: torch.Tensor, guesses: list[int], guessed: torch.Tensor) -> tuple[int, int]:
        """As :meth:`check`, from the logits of :meth:`passed`."""
        count, token = self._choose(logits, guesses, guessed)
        self.settle([*guesses[:count], token])
        return count, token

    def _choose(self, logits: torch.Tensor, guesses: list[int], guessed: torch.Tensor) -> tuple[int, int]:
        if self.temperature > 0:
            return taken(guesses, guessed, self.probabilities(logits), self.generator)
        likeliest = logits.argmax(-1).tolist()
        count = next((i for i, token in enumerate(guesses) if token != likeliest[i]), len(guesses))
        return count, likeliest[count]
