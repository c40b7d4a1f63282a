"""Unfinished lines of the grammar with one right end, put to every model of the family: traces for cascades, routing.

A query ends at a question mark or another cue. Classes differ in what they ask for: ``when`` and ``fact`` were learnt
(the first has few different answers), ``spelling`` is taken apart letter by letter, ``day`` is the weekday after those
in the line, ``person`` is a name that was mentioned. All lines are held-out documents: no model has seen one in
training. Facts are few, so that another held-out line stands before each of them. More lines are recorded for
routers to learn from (:mod:`edgeopt.training.router`).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeopt.profiles.answers import SPLITS, Trace, write_answers
from edgeopt.profiles.model import Answers, Architecture
from edgeopt.programs.answering import Queries, answer, write_queries
from edgeopt.programs.drafting import CachedScorer
from edgeopt.training.router import fit_router
from edgeopt.training.text.grammar import document, encode, is_held_out

__all__ = ["MOST_TOKENS", "QUERIES", "TRACE", "questions", "record_answers"]

TRACE = "answers.csv"
QUERIES = "queries.safetensors"
#: Longest answer: no right one is longer.
MOST_TOKENS = 40

_SEED, _TRAIN_SEED = 3, 5
_COUNTS = {"when": 160, "fact": 110, "spelling": 140, "day": 160, "person": 70}
#: Of these a router learns; there are not many more pairs of words to spell.
_TRAIN_COUNTS = {"when": 160, "fact": 110, "spelling": 20, "day": 160, "person": 150}
#: Kind of document → what its last answer follows.
_CUES = {"fact": "?", "spelling": " is spelled", "day": " then came", "moved": " it?"}
#: Kinds of the line before a fact.
_BEFORE = ("spelling", "sum")


def questions(seed: int, counts: Mapping[str, int], but: Iterable[str] = ()) -> list[tuple[str, str, str]]:
    """Draw different queries, none of ``but``: class, text up to the cue, and the answer up to its stop.

    Like every document a query begins after a line break.
    """
    draw, left, seen = random.Random(seed), dict(counts), set(but)
    found, before = [], ""
    while any(left.values()):
        kind, text = document(draw)
        if not is_held_out(text):
            continue
        if kind in _BEFORE:
            before = text
        cue = _CUES.get(kind)
        if cue is None or cue not in text:
            continue
        asked, _, told = text.rpartition(cue)
        name = {"moved": "person", "fact": "when" if told.startswith(" on ") else "fact"}.get(kind, kind)
        query = f"\n{before if kind == 'fact' else ''}{asked}{cue}"
        if left.get(name, 0) and query not in seen:
            seen.add(query)
            left[name] -= 1
            found.append((name, query, told.rstrip("\n")))
    return found


def record_answers(folder: Path, architectures: Mapping[str, Architecture], say: Any = print) -> Answers:
    """Ask every model, and write queries and trace into a folder.

    Parameters
    ----------
    architectures
        By the model's name in the trace, checkpoints included.

    Returns
    -------
    Answers
        What the profile says of them, for a folder that is a sibling of the profile's.
    """
    asked = questions(_SEED, _COUNTS)
    asked += questions(_TRAIN_SEED, _TRAIN_COUNTS, but=[query for _, query, _ in asked])
    queries = [encode(question) for _, question, _ in asked]
    right = [encode(told) for _, _, told in asked]
    stop = encode(".")[0]
    write_queries(str(folder / QUERIES), Queries(queries, right, stop))
    names, shape = tuple(architectures), (len(asked), len(architectures))
    correct, confidence, tokens = np.zeros(shape), np.zeros(shape), np.zeros(shape, np.int64)
    for m, name in enumerate(names):
        scorer = CachedScorer(
            architectures[name], dtype=torch.float32, device=torch.device("cpu"),
            max_tokens=max(map(len, queries)) + MOST_TOKENS,
        )  # fmt: skip
        with torch.inference_mode():
            for n, query in enumerate(queries):
                scorer.reset()
                said = answer(scorer, query, stop, MOST_TOKENS)
                correct[n, m], confidence[n, m] = said.tokens == right[n], said.confidence
                tokens[n, m] = len(said.tokens)
    classes = np.array([kind for kind, _, _ in asked])
    splits = np.repeat(["fit", "train"], [sum(_COUNTS.values()), sum(_TRAIN_COUNTS.values())]).astype(np.dtype("<U8"))
    for kind in _COUNTS:  # every other one of each class
        splits[np.flatnonzero((classes == kind) & (splits == "fit"))[1::2]] = "held-out"
    lengths = np.array([len(query) for query in queries])
    trace = Trace(names, np.arange(len(asked)), classes, splits, correct, confidence, lengths, tokens)
    router, trace = fit_router(trace, queries)
    say(f"router: {router.source}")
    write_answers(folder / TRACE, trace)
    for kind in _COUNTS:
        shares = correct[(classes == kind) & (splits != "train")].mean(axis=0)
        say(f"{kind}: " + ", ".join(f"{name} {share:.3f}" for name, share in zip(names, shares, strict=True)))
    source = (
        f"recorded {date.today().isoformat()}: {sum(_COUNTS.values())} held-out lines of the grammar, every other "
        f"one {SPLITS[1]}, and {sum(_TRAIN_COUNTS.values())} to train on; right if every character is, confidence is "
        "the probability of the whole answer"
    )
    here = f"../{folder.parent.name}/{folder.name}"
    return Answers(trace=f"{here}/{TRACE}", queries=f"{here}/{QUERIES}", router=router, source=source)
