"""What a shell completes: names of the library, fields, strategies, backends, launchers. Imported only when it asks.

A completion that fails must not print into somebody's command line: it completes nothing instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

__all__ = [
    "backends", "devices", "faults", "fields", "kinds", "launchers", "models", "names", "networks", "objectives",
    "places", "problems", "strategies", "strategies_or_auto", "targets",
]  # fmt: skip

Entries = Iterable[str | tuple[str, str]]
Complete = Callable[[str], list[str | tuple[str, str]]]


def _completing(entries: Callable[[], Entries]) -> Complete:
    """Return a completion from all there is."""

    def complete(incomplete: str) -> list[str | tuple[str, str]]:
        try:
            found = list(entries())
        except Exception:
            return []
        return [one for one in found if (one if isinstance(one, str) else one[0]).startswith(incomplete)]

    complete.__name__, complete.__doc__ = entries.__name__, entries.__doc__
    return complete


def _library(*kinds: str) -> Entries:
    from edgeopt.profiles.library import known_names  # descriptions would take reading every file

    return sorted({name for kind in kinds for name in known_names(kind)})


@_completing
def problems() -> Entries:
    """Bundled problems; without one that fits, the shell completes files."""
    return _library("problem")


@_completing
def models() -> Entries:
    """Models of the library."""
    return _library("model")


@_completing
def networks() -> Entries:
    """Networks of the library."""
    return _library("network")


@_completing
def names() -> Entries:
    """Everything in the library."""
    return _library("device", "model", "network", "problem")


def devices(incomplete: str) -> list[str | tuple[str, str]]:
    """Devices of the library, also after ``NAME=``."""
    name, equals, rest = incomplete.rpartition("=")
    return [f"{name}{equals}{device}" for device in _devices(rest)]


@_completing
def _devices() -> Entries:
    return _library("device")


@_completing
def strategies() -> Entries:
    """Installed strategies."""
    from edgeopt.strategies import strategy_names

    return strategy_names()


def strategies_or_auto(incomplete: str) -> list[str | tuple[str, str]]:
    """Installed strategies, and auto."""
    return [*(["auto"] if "auto".startswith(incomplete) else []), *strategies(incomplete)]


@_completing
def backends() -> Entries:
    """Backends of the solvers."""
    from edgeopt_solvers.solve import BACKENDS

    return BACKENDS


@_completing
def launchers() -> Entries:
    """Where a plan can run."""
    from edgeopt.executor import LAUNCHERS

    return LAUNCHERS


@_completing
def places() -> Entries:
    """Where a sweep can run."""
    return ("local", "ray")


@_completing
def faults() -> Entries:
    """What to do when a worker is lost."""
    return ("fail", "retry", "replan")


@_completing
def targets() -> Entries:
    """Tools that a plan can be written for."""
    from edgeopt.export import TARGETS

    return TARGETS


@_completing
def kinds() -> Entries:
    """Kinds of profiles."""
    from edgeopt.profiles.library import KINDS

    return KINDS


@_completing
def objectives() -> Entries:
    """What can be asked for."""
    return ("latency", "throughput", "energy", "quality", "ttft", "tpot")


@_completing
def fields() -> Entries:
    """Fields that sweeps are often about."""
    return (
        ("workload.new_tokens=", "tokens generated per request"), ("workload.prompt_tokens=", "tokens of the prompt"),
        ("workload.batch=", "requests at once"), ("workload.steps=", "denoising steps"),
        ("network.default.rate=", "of links that are not listed"), ("network.links[0].rate=", "of a link"),
        ("devices[0].memory=", "what plans may use of it"), ("devices=", "who may compute"),
        ("constraints.max_stages=", "most stages"), ("constraints.deadline=", "seconds per request"),
        ("model=", "of the library"), ("network=", "of the library"), ("objective=", "what is minimised"),
    )  # fmt: skip
