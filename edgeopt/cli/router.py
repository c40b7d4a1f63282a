"""The verb that trains a router: profile router."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeopt.cli import completion
from edgeopt.cli.common import Json, Output, hand_over, progress_line, writable

__all__ = ["profile_router"]


def profile_router(
    family: Annotated[
        str,
        typer.Argument(
            help="A language model with recorded answers, by name or file.", autocompletion=completion.models
        ),
    ],
    output: Output = None,
    train_share: Annotated[
        float | None,
        typer.Option(help="Train on this part of the queries of split fit, and decide from the others.", min=0, max=1),
    ] = None,
    features: Annotated[int, typer.Option(help="The most that the router may look at.", min=1)] = 48,
    longest_run: Annotated[int, typer.Option(help="Tokens of the longest run looked for in queries.", min=1)] = 6,
    seed: Annotated[int, typer.Option(help="Of cross-validation and --train-share.")] = 0,
    json: Json = False,
) -> None:
    """Train a router on a family's recorded answers, and write its profile and, beside it, the trace with features."""
    from edgeopt.errors import Finding, InputError
    from edgeopt.profiles import load_model
    from edgeopt.profiles.answers import read_answers, write_answers
    from edgeopt.profiles.checkpoints import with_relative_files
    from edgeopt.profiles.model import CausalLM
    from edgeopt.training.router import Fitting, fit_router, tokens_of, with_training_rows

    if output is None:
        raise InputError(Finding("-o", "is missing: a profile and a trace are written", "add -o FILE.yaml"))
    writable(output)
    model = load_model(family)
    if not isinstance(model, CausalLM):
        raise InputError(Finding("FAMILY", f"'{model.name}' answers no queries", "give a language model"))
    trace = read_answers(model)
    assert model.answers is not None
    if train_share is not None:
        trace = with_training_rows(trace, train_share, seed)
    with progress_line(json) as progress:
        progress("training")
        fitting = Fitting(most_features=features, longest_run=longest_run, seed=seed)
        router, known = fit_router(trace, tokens_of(model), fitting)
    beside = _beside(output)
    write_answers(beside, known)
    answers = model.answers.model_copy(update={"router": router, "trace": str(beside.absolute())})
    trained = model.model_copy(update={"answers": answers})
    hand_over(with_relative_files(trained, output.parent), output, json)


def _beside(output: Path) -> Path:
    return output.with_name(f"{output.stem}-answers.csv")
