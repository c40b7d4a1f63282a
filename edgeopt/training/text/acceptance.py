"""How many guesses of a draft the target takes, measured on held-out prompts.

What follows a refused guess is harder to guess than what follows any token, so the chance at a position depends on the
draft's length. The figures are chosen so that the mean yield of a round is close to the measured one at every length:
tokens(γ) = 1 + Σ_{i<=γ} Π_{j<=i} α_j.
"""

from __future__ import annotations

import numpy as np
import torch

__all__ = ["greedy_marks", "positions_of", "sampled_marks", "yields"]


@torch.inference_mode()
def _continuations(target: torch.nn.Module, prompts: torch.Tensor, num_tokens: int, temperature: float) -> torch.Tensor:
    """Continue every prompt by the target alone, (rows, prompt + num_tokens)."""
    options = {"do_sample": False} if temperature == 0 else {"do_sample": True, "temperature": temperature, "top_k": 0}
    torch.manual_seed(0)
    return target.generate(  # type: ignore[operator]
        prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=num_tokens, min_new_tokens=num_tokens,
        pad_token_id=0, num_beams=1, **options,
    )  # fmt: skip


@torch.inference_mode()
def greedy_marks(target: torch.nn.Module, draft: torch.nn.Module, prompts: torch.Tensor, num_tokens: int) -> np.ndarray:
    """Whether the draft's likeliest token is the target's, along the target's own text; (rows, num_tokens) of 0 or 1.

    What was taken is the target's text, so the draft is asked at just these places.
    """
    text = _continuations(target, prompts, num_tokens, 0.0)
    guesses = draft(text[:, :-1], use_cache=False).logits.argmax(-1)
    return (guesses == text[:, 1:])[:, -num_tokens:].double().numpy()


@torch.inference_mode()
def sampled_marks(
    target: torch.nn.Module, draft: torch.nn.Module, prompts: torch.Tensor, num_tokens: int, temperature: float
) -> np.ndarray:
    """Chance that a sampled guess is taken, Σ_x min(p(x), q(x)), along text that the target sampled."""
    text = _continuations(target, prompts, num_tokens, temperature)
    p, q = (torch.softmax(m(text[:, :-1], use_cache=False).logits / temperature, -1) for m in (target, draft))
    return torch.minimum(p, q).sum(-1)[:, -num_tokens:].double().numpy()


def yields(marks: np.ndarray, max_length: int, starts: int = 1) -> np.ndarray:
    """Mean tokens of a round at each length 0 … ``max_length``, with every round beginning where the last one ended.

    Parameters
    ----------
    marks : (rows, tokens)
        Chance that a guess at a place is taken. The first token is the prefill's; rounds begin after it.
    starts
        Places at which the first round may begin, equally likely: prompts end anywhere in the text.
    """
    tokens = marks.shape[1]
    found = [1.0]
    for length in range(1, max_length + 1):
        here = np.zeros((len(marks), tokens + 1))  # chance that a round begins at a place
        here[:, 1 : 1 + starts] = 1.0
        made = rounds = 0.0
        for place in range(1, tokens - length):
            going = here[:, place].copy()
            rounds += going.sum()
            for k in range(length):
                refused = going * (1.0 - marks[:, place + k])
                here[:, place + k + 1] += refused
                made += refused.sum() * (k + 1)
                going *= marks[:, place + k]
            here[:, place + length + 1] += going
            made += going.sum() * (length + 1)
        found.append(made / rounds)
    return np.array(found)


def positions_of(tokens: np.ndarray) -> list[float]:
    """Turn yields of lengths 0 … G into the chance at each position, given that all before it were taken.

    What one more position adds cannot grow with the length in this form, but may in the text (rounds fall into step
    with its words): where it does, neighbouring lengths share their sum (isotonic regression).
    """
    blocks: list[tuple[float, int]] = []
    for added in np.diff(tokens):
        total, count = float(added), 1
        while blocks and blocks[-1][0] * count < total * blocks[-1][1]:
            before = blocks.pop()
            total, count = total + before[0], count + before[1]
        blocks.append((total, count))
    products = np.array([total / count for total, count in blocks for _ in range(count)])
    before = np.concatenate([[1.0], products[:-1]])
    return [float(x) for x in np.clip(products / np.maximum(before, 1e-12), 0.0, 1.0)]
