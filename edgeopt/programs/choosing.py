"""The next token from its logits: the likeliest, or one that is drawn and depends on nothing but seed and position.

A draw takes its random numbers from the request's seed and the token's position in the sequence. So it does not matter
which process draws, how many tokens were drawn there before, or whether a request was interrupted and resumed.
"""

from __future__ import annotations

import hashlib

import torch

__all__ = ["choose_token"]


def choose_token(logits: torch.Tensor, temperature: float, seed: int, position: int) -> torch.Tensor:
    """Choose a token for every sequence.

    Parameters
    ----------
    logits : (batch, vocabulary)
    temperature
        0: the likeliest.
    seed
        Of the request.
    position
        Of the token in its sequence, prompt included.

    Returns
    -------
    (batch, 1) int64
    """
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    # Neighbouring seeds of this generator are not independent; digests are.
    digest = hashlib.sha256(f"{seed}:{position}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    probabilities = torch.softmax(logits.double().cpu() / temperature, -1)
    return torch.multinomial(probabilities, 1, generator=generator).to(logits.device)
