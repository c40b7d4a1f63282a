"""How a model answers a query: greedily up to a token that ends answers, and how sure it is of what it said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

__all__ = ["CONFIDENCE_DECIMALS", "Answer", "Queries", "Scorer", "answer", "read_queries", "write_queries"]

#: Traces hold confidences with so many decimals; a threshold is compared with the same number that was recorded.
CONFIDENCE_DECIMALS = 4


class Scorer(Protocol):
    """A whole model that scores new tokens after those it has seen (see :mod:`edgeopt.programs.drafting`)."""

    def score(self, tokens: Sequence[int], last: int) -> torch.Tensor:
        """Return the logits after each of the ``last`` last new tokens, (last, vocabulary) float32."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Tokens, the ending one included, and the probability that the model gives to all of them together."""

    tokens: list[int]
    confidence: float


def answer(scorer: Scorer, query: Sequence[int], stop: int, most: int) -> Answer:
    """Answer a query with a scorer that has seen nothing yet.

    Parameters
    ----------
    stop
        Token that ends an answer.
    most
        Tokens after which it ends in any case.
    """
    tokens: list[int] = []
    nats, new = 0.0, list(query)
    while len(tokens) < most and tokens[-1:] != [stop]:
        logits = scorer.score(new, 1)[-1].double()
        new = [int(logits.argmax())]
        nats += float(logits[new[0]] - logits.logsumexp(0))
        tokens += new
    return Answer(tokens, round(float(torch.tensor(nats, dtype=torch.float64).exp()), CONFIDENCE_DECIMALS))


@dataclass(frozen=True, slots=True)
class Queries:
    """Tokens of queries and of their right answers, row by row, and the token that ends an answer."""

    queries: list[list[int]]
    answers: list[list[int]]
    stop: int


def write_queries(path: str, queries: Queries) -> None:
    """Write a safetensors file: ``queries`` and ``answers`` one after the other, the length of each, and ``stop``."""
    from safetensors.torch import save_file

    tensors = {"stop": torch.tensor([queries.stop], dtype=torch.int32)}
    for name, rows in (("queries", queries.queries), ("answers", queries.answers)):
        largest = max(max(row) for row in rows)
        tensors[name] = torch.tensor(
            [t for row in rows for t in row], dtype=torch.uint8 if largest < 256 else torch.int32
        )
        tensors[f"{name}_lengths"] = torch.tensor([len(row) for row in rows], dtype=torch.int32)
    save_file(tensors, path)
    Path(path).chmod(0o644)  # safetensors writes files that only their owner reads


def read_queries(path: str) -> Queries:
    """Read what :func:`write_queries` wrote.

    Raises
    ------
    InputError
        The file cannot be read, or holds something else.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from edgeopt.errors import Finding, InputError

    try:
        tensors = load_file(path)
        rows = {
            name: [part.tolist() for part in tensors[name].long().split(tensors[f"{name}_lengths"].tolist())]
            for name in ("queries", "answers")
        }
        stop = int(tensors["stop"])
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        finding = Finding("model.answers.queries", f"cannot be read: {error}", "record the answers anew", path)
        raise InputError(finding) from None
    return Queries(rows["queries"], rows["answers"], stop)
