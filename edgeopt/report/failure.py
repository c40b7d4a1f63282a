"""What the command line says when something went wrong: a short message, an exit code, the command to try next."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeopt.errors import (
    CheckFailedError,
    ExecutionError,
    InputError,
    MissingDependencyError,
    NoPlanError,
    TimeLimitError,
)
from edgeopt_solvers import CheckError, SolverError

__all__ = ["error_document", "exit_code", "message", "next_command"]

#: What is said of a name that the library does not hold.
_UNKNOWN = re.compile(r"there is no (device|model|network|problem) '[^']*'$")


def exit_code(error: BaseException) -> int:
    """Return 1 for no plan, a failed check, a failed run or a defect; 2 for bad input; 3 for the time limit."""
    if isinstance(error, TimeLimitError):
        return 3
    if isinstance(error, NoPlanError | CheckFailedError | ExecutionError | CheckError):
        return 1
    if _is_usage(error) or isinstance(error, ValueError | MissingDependencyError | ModuleNotFoundError | OSError):
        return 2
    return 1


def message(error: BaseException) -> str:
    """Return the error in words: what is wrong, with every finding on its own line."""
    if _is_usage(error):
        return error.format_message()  # type: ignore[attr-defined]
    if type(error).__name__ == "ValidationError":  # pydantic's, from an option's value
        details = error.errors()  # type: ignore[attr-defined]
        return "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}, got {one['input']!r}" for one in details)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    text = str(error) or type(error).__name__
    known = isinstance(error, ValueError | OSError | ImportError | SolverError | TimeLimitError | NoPlanError)
    if known or isinstance(error, CheckFailedError | ExecutionError):
        return text
    return f"internal error, please report it with the output of --debug: {type(error).__name__}: {text}"


def next_command(error: BaseException, arguments: Sequence[str]) -> str:
    """Return the command that most likely helps, for what the user had typed."""
    verb = next((word for word in arguments if not word.startswith("-")), "")
    verb = " ".join(arguments[:2]) if verb in ("profile", "profiles") else verb
    if _is_usage(error):
        context = getattr(error, "ctx", None)
        return f"{context.command_path if context else 'edgeopt'} --help"
    subject = _subject(arguments)
    quoted = shlex.quote(subject) if subject else ""
    if isinstance(error, MissingDependencyError):
        return f"pip install 'edgeopt[{error.extra}]'"
    if isinstance(error, ModuleNotFoundError):
        return "pip install 'edgeopt[all]'"
    if isinstance(error, TimeLimitError):
        return f"edgeopt {verb if verb in ('compare', 'explain') else 'solve'} {quoted} --time-limit 600s"
    if isinstance(error, NoPlanError):
        return f"edgeopt profiles show {quoted}"
    if isinstance(error, ExecutionError) and verb == "execute":
        return f"edgeopt verify {quoted}"
    if isinstance(error, CheckFailedError):
        return "edgeopt solve PROBLEM -o PLAN"
    if isinstance(error, InputError):
        return _next_for_input(error, verb, quoted, subject)
    if exit_code(error) == 1:
        return " ".join(["edgeopt", *map(shlex.quote, arguments), "--debug"])
    return f"edgeopt {verb} --help"


def _next_for_input(error: InputError, verb: str, quoted: str, subject: str) -> str:
    fields = {finding.field for finding in error.findings}
    unknown = [found[1] for finding in error.findings if (found := _UNKNOWN.match(finding.message))]
    if unknown and len(unknown) == len(error.findings):
        return f"edgeopt profiles list {unknown[0]}s"
    if any(field.startswith("-") for field in fields) or not verb:
        return f"edgeopt {verb} --help".replace("  ", " ")
    if verb == "profiles show" and any(finding.mend.startswith("say which") for finding in error.findings):
        return f"edgeopt profiles show {quoted} --kind problem"
    if verb in ("verify", "execute", "diff", "report", "export"):
        return f"edgeopt solve PROBLEM -o {quoted}"
    if verb in ("solve", "compare", "explain", "sweep") and Path(subject).is_file():
        return f"edgeopt profiles validate {quoted}"
    if verb == "profiles validate":
        return "edgeopt profiles schema problem"
    if verb == "profiles schema":
        return "edgeopt profiles schema --help"
    return "edgeopt profiles list"


def _subject(arguments: Sequence[str]) -> str:
    """Return the problem, plan or profile that the command was about: the first word that is not an option's value."""
    flags = {"--json", "--debug", "--version", "--help"}
    positional, skip = [], False
    for word in arguments:
        if skip:
            skip = False
        elif word.startswith("-"):
            skip = word not in flags and "=" not in word
        else:
            positional.append(word)
    depth = 2 if positional[:1] and positional[0] in ("profile", "profiles") else 1
    return positional[depth] if len(positional) > depth else ""


def error_document(error: BaseException, arguments: Sequence[str]) -> dict[str, Any]:
    """Return an error as the one JSON document that ``--json`` prints."""
    body: dict[str, Any] = {
        "type": type(error).__name__,
        "message": message(error),
        "exit_code": exit_code(error),
        "next": next_command(error, arguments),
    }
    if isinstance(error, InputError):
        keys = ("field", "message", "mend", "file", "line")
        body["findings"] = [{key: getattr(finding, key) for key in keys} for finding in error.findings]
    if isinstance(error, ExecutionError):
        body |= {"stage": error.stage, "device": error.device, "reason": error.reason}
    return {"error": body}


def _is_usage(error: BaseException) -> bool:
    # typer raises click's class or, in later releases, one of its own: the method is what they share.
    return hasattr(error, "format_message")
