"""Answer traces: what every model of a family answered to the same queries, and how confident it was.

A CSV file with a row per query and the columns ``query`` (a number of its own), ``class`` (text), ``split`` (``fit``
for what may be decided from, ``held-out`` for what must hold afterwards, ``train`` for what routers learn from), and
for each model ``correct:NAME`` (0 or 1) and ``confidence:NAME`` (from 0 to 1); models are the names of ``drafts`` and
the profile's own. Where known, ``prompt`` is the number of tokens of the query and ``tokens:NAME`` that of each answer.
Columns ``feature:NAME`` are numbers that are known of a query before it is answered.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import Finding, InputError
from edgeopt.profiles.library import known_or_near
from edgeopt.profiles.model import CausalLM

__all__ = ["SPLITS", "Trace", "model_names", "read_answers", "write_answers"]

SPLITS = ("fit", "held-out", "train")
#: Those that a trace cannot do without.
_NEEDED = SPLITS[:2]

_FIELD = "model.answers.trace"
_WORDS = ("query", "class", "split")
_PROMPT = "prompt"
_FEATURE = "feature:"

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False, slots=True)
class Trace:
    """N queries and the answers of M models to them.

    Attributes
    ----------
    models
        Names, as :func:`model_names` orders them.
    query : (N,)
        Row of the queries' file.
    classes : (N,)
        What kind of query each is.
    splits : (N,)
        What each may be used for, one of :data:`SPLITS`.
    correct, confidence : (N, M)
        0 or 1; from 0 to 1.
    prompt_tokens : (N,) or None
        Tokens of each query.
    tokens : (N, M) or None
        Tokens of each answer.
    features : (N, F) or None
        What else is known of each query before it is answered, by the names in ``feature_names``.
    """

    models: tuple[str, ...]
    query: Ints
    classes: NDArray[np.str_]
    splits: NDArray[np.str_]
    correct: Floats
    confidence: Floats
    prompt_tokens: Ints | None = None
    tokens: Ints | None = None
    features: Floats | None = None
    feature_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.query)

    @property
    def held_out(self) -> NDArray[np.bool_]:
        """Whether nothing may be decided from a query, (N,)."""
        return self.splits == "held-out"

    def part(self, split: str) -> Trace:
        """Return the queries of one of :data:`SPLITS`."""
        return self.rows(np.flatnonzero(self.splits == split))

    def rows(self, index: Ints) -> Trace:
        """Return some of the queries."""
        arrays = [each.name for each in fields(self) if each.name not in ("models", "feature_names")]
        known = {name: value[index] for name in arrays if (value := getattr(self, name)) is not None}
        return replace(self, **known)


def model_names(model: CausalLM) -> tuple[str, ...]:
    """Names of a family's models in traces: drafts as the profile lists them, then the model itself."""
    return (*model.drafts, model.name)


def read_answers(model: CausalLM) -> Trace:
    """Read the trace that a profile names.

    Raises
    ------
    InputError
        The profile names none, the file cannot be read, a column is missing or speaks of no model, a value is out of
        range, or a split is empty; every kind of mistake is reported once, with the line where it is first made.
    """
    if model.answers is None:
        message = f"'{model.name}' has no recorded answers"
        raise InputError(Finding("model.answers", message, "add `answers: {trace: FILE.csv, source: …}`"))
    path = Path(model.answers.trace)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = [row for row in csv.reader(file) if row] or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        message = f"cannot be read: {getattr(error, 'strerror', None) or error}"
        raise InputError(Finding(_FIELD, message, "give a CSV file", str(path))) from None
    models = model_names(model)
    if findings := list(_columns(header, models, str(path))):
        raise InputError(findings)
    reader = _Reader(header, rows, str(path))
    trace = reader.trace(models)
    if reader.findings:
        raise InputError(reader.findings)
    assert trace is not None
    return trace


def write_answers(path: Path, trace: Trace) -> None:
    """Write a trace as :func:`read_answers` reads it; confidences with four decimals."""
    from edgeopt.files import write_whole

    named = [f"{kind}:{name}" for name in trace.models for kind in ("correct", "confidence")]
    header = [*_WORDS, *named]
    if trace.prompt_tokens is not None and trace.tokens is not None:
        header += [_PROMPT, *(f"tokens:{name}" for name in trace.models)]
    header += [f"{_FEATURE}{name}" for name in trace.feature_names]
    lines = [",".join(header)]
    for n in range(len(trace)):
        cells = [str(int(trace.query[n])), str(trace.classes[n]), str(trace.splits[n])]
        for m in range(len(trace.models)):
            cells += [f"{trace.correct[n, m]:g}", f"{trace.confidence[n, m]:.4f}"]
        if trace.prompt_tokens is not None and trace.tokens is not None:
            cells += map(str, [int(trace.prompt_tokens[n]), *trace.tokens[n].tolist()])
        if trace.features is not None:
            cells += [f"{value:.9g}" for value in trace.features[n]]
        lines.append(",".join(cells))
    write_whole(path, "\n".join(lines) + "\n")


def _columns(header: Sequence[str], models: Sequence[str], file: str) -> Iterator[Finding]:
    """Yield what is wrong with the names of the columns."""
    kinds = ("correct", "confidence")
    wanted = [*_WORDS, *(f"{kind}:{name}" for name in models for kind in kinds)]
    if any(column.startswith("tokens:") for column in header) or _PROMPT in header:
        wanted += [_PROMPT, *(f"tokens:{name}" for name in models)]
    for column in wanted:
        if column not in header:
            mend = "record the trace anew, or add the column"
            if ":" in column and not any(each.endswith(column[column.index(":") :]) for each in header):
                mend = f"record the answers of '{column.partition(':')[2]}' too, or take it out of the family"
            yield Finding(_FIELD, f"column '{column}' is missing", mend, file, 1)
    for number, column in enumerate(header):
        if column in header[:number]:
            yield Finding(_FIELD, f"column '{column}' is there twice", "keep one of them", file, 1)
        elif column not in wanted and not column.startswith(_FEATURE):
            kind, _, name = column.partition(":")
            if kind in (*kinds, "tokens") and name not in models:
                message = f"column '{column}' speaks of no model of the family"
                yield Finding(_FIELD, message, known_or_near(name, models), file, 1)
            else:
                yield Finding(_FIELD, f"column '{column}' is unknown", known_or_near(column, wanted), file, 1)


class _Reader:
    """Columns of a file as arrays; keeps the first mistake of each column."""

    def __init__(self, header: Sequence[str], rows: Sequence[Sequence[str]], file: str) -> None:
        self.file, self.header, self.rows = file, list(header), rows
        self.findings: list[Finding] = []

    def trace(self, models: tuple[str, ...]) -> Trace | None:
        """Return the trace, or ``None`` after keeping what was found."""
        for number, row in enumerate(self.rows):
            if len(row) != len(self.header):
                message = f"has {len(row)} values for {len(self.header)} columns"
                self._report(number, message, "give one value per column")
                return None
        query, splits = self._numbers("query", whole=True), self._words("split")
        for number, split in enumerate(splits):
            if split not in SPLITS:
                self._report(number, f"split is '{split}'", f"write {', '.join(_NEEDED)} or {SPLITS[-1]}")
                break
        for split in _NEEDED:
            if split not in splits:
                self._report(None, f"no query has the split '{split}'", f"give some queries `{split}`")
        seen: set[float] = set()
        for number, value in enumerate(query.tolist()):
            if value in seen:
                self._report(number, f"query {value:g} is there twice", "keep one row per query")
                break
            seen.add(value)
        correct = self._stack("correct", models, allowed=(0.0, 1.0))
        confidence = self._stack("confidence", models, most=1.0)
        lengths = answers = features = None
        if _PROMPT in self.header:
            lengths = self._numbers(_PROMPT, least=1, whole=True)
            answers = self._stack("tokens", models, least=1, whole=True)
        names = tuple(column.removeprefix(_FEATURE) for column in self.header if column.startswith(_FEATURE))
        if names:
            features = self._stack("feature", names, least=-math.inf)
        if self.findings:
            return None
        classes, parts = np.array(self._words("class"), dtype=np.str_), np.array(splits, dtype=np.str_)
        counts = [None if each is None else each.astype(np.int64) for each in (lengths, answers)]
        return Trace(models, query.astype(np.int64), classes, parts, correct, confidence, *counts, features, names)

    def _words(self, column: str) -> list[str]:
        at = self.header.index(column)
        return [row[at].strip() for row in self.rows]

    def _stack(self, kind: str, models: Sequence[str], **limits: object) -> Floats:
        return np.stack([self._numbers(f"{kind}:{name}", **limits) for name in models], axis=1)  # type: ignore[arg-type]

    def _numbers(
        self,
        column: str,
        least: float = 0.0,
        most: float = math.inf,
        allowed: tuple[float, ...] = (),
        whole: bool = False,
    ) -> Floats:
        values = np.full(len(self.rows), math.nan)
        wanted = " or ".join(f"{value:g}" for value in allowed)
        if not allowed:
            span = f" from {least:g} to {most:g}" if most < math.inf else f" of {least:g} or more"
            wanted = f"a {'whole ' if whole else ''}number{span if least > -math.inf else ''}"
        for number, text in enumerate(self._words(column)):
            try:
                value = float(text)
            except ValueError:
                value = math.nan
            fits = value in allowed if allowed else least <= value <= most and math.isfinite(value)
            if not fits or (whole and value != int(value)):
                self._report(number, f"{column} is '{text}'", f"write {wanted}")
                break
            values[number] = value
        return values

    def _report(self, row: int | None, message: str, mend: str) -> None:
        self.findings.append(Finding(_FIELD, message, mend, self.file, None if row is None else row + 2))
