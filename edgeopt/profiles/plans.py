"""Plans and profiles as text, and plans back from text."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from edgeopt.errors import InputError
from edgeopt.files import write_whole
from edgeopt.profiles.base import Profile
from edgeopt.profiles.checks import check_problem
from edgeopt.profiles.findings import translate
from edgeopt.profiles.problem import Problem
from edgeopt.profiles.reader import Document, read_document
from edgeopt.profiles.writer import parse_own, to_yaml

if TYPE_CHECKING:
    from edgeopt.plan import Plan

__all__ = ["dump_plan", "dump_yaml", "load_plan", "plan_of", "save_plan"]


def dump_yaml(model: BaseModel) -> str:
    """Return a profile, problem, plan or report as YAML that loads back to an equal object.

    Profiles and problems leave out what is at its default; quantities carry SI units ("50000000.0 B/s").
    """
    if isinstance(model, (Profile, Problem)):
        data = model.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        kind = getattr(model, "kind", None)
        if kind is not None:
            data = {"name": data.pop("name"), "kind": kind, **data}
        elif isinstance(model, Problem):
            data["workload"] = {"kind": model.workload.kind, **data["workload"]}
        return to_yaml(data)
    return to_yaml(model.model_dump(mode="json", by_alias=True))


def dump_plan(plan: Plan) -> str:
    """Return a plan as YAML: the decision on top, the resolved problem below, one line per stage and transfer."""
    data = plan.model_dump(mode="json", by_alias=True)
    return to_yaml({key: data[key] for key in sorted(data, key=lambda key: key == "problem")})


def save_plan(plan: Plan, path: str | os.PathLike[str]) -> None:
    """Write a plan to a file, whole or not at all: YAML, or JSON where the name ends in ``.json``."""
    is_json = Path(path).suffix == ".json"
    write_whole(path, plan.model_dump_json(by_alias=True, indent=2) + "\n" if is_json else dump_plan(plan))


def load_plan(path: str | os.PathLike[str]) -> Plan:
    """Read a plan file, YAML or JSON.

    Raises
    ------
    InputError
        Unreadable, of another format version, or wrong in a field; every finding has its line.
    """
    return plan_of(read_document(path, None if Path(path).suffix == ".json" else parse_own))


def plan_of(document: Document) -> Plan:
    """Return the plan that a document holds."""
    from edgeopt.plan import FORMAT, Plan  # here, since a plan's types rest on this package

    data: dict[str, Any] = document.data
    if "format" not in data:
        mend = "give a file written by `edgeopt solve -o`"
        raise InputError(document.finding((), "this is no plan: `format` is missing", mend))
    if data["format"] != FORMAT:
        written_by = data.get("edgeopt_version", "another version")
        mend = f"solve the problem again with this version, or use the edgeopt that wrote it ({written_by})"
        message = f"'{data['format']}' is not the plan format that this version reads ({FORMAT})"
        raise InputError(document.finding(("format",), message, mend))
    try:
        plan = Plan.model_validate(data, context={"from_file": True})
    except ValidationError as error:
        raise InputError([document.finding(*flaw) for flaw in translate(error, Plan, data)]) from None
    flaws = [flaw._replace(path=("problem", *flaw.path)) for flaw in check_problem(plan.problem)]
    if flaws:
        raise InputError([document.finding(*flaw) for flaw in flaws])
    return plan
