"""What every launcher does: provide the machines of a run, start one worker on each, take all of it down again."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from edgeopt.executor.endpoint import Endpoint
from edgeopt.executor.layout import Host, Layout
from edgeopt.executor.messages import Job
from edgeopt.plan import Plan

__all__ = ["Launcher", "Settings"]


@dataclass(frozen=True, slots=True)
class Settings:
    """What the caller may choose about launching.

    Attributes
    ----------
    port
        Where the workers meet; ``None``: the system chooses.
    hosts
        A hosts file: which machine is which device.
    command
        Starts one worker on this machine.
    ssh
        Run the commands that start workers elsewhere, rather than only say them.
    timeout_s
        Seconds within which all workers must have called.
    announce, progress
        Called with what the caller must be told, and with what is going on.
    one_at_a_time
        Whether only one device computes at a moment: a chain with one request under way.
    """

    port: int | None
    hosts: Path | None
    command: Sequence[str]
    ssh: bool
    timeout_s: float
    announce: Callable[[str], None]
    progress: Callable[[str], None]
    one_at_a_time: bool = False


class Launcher(contextlib.AbstractContextManager["Launcher"], ABC):
    """The machines of one run. Entering provides them, leaving takes them down, whatever happened in between.

    Workers are gone when a launcher is left: a :class:`~edgeopt.executor.supervise.Crew` is entered after it.

    Raises
    ------
    InputError
        On construction or entry: this plan cannot be run this way here. The message says what is missing and what
        to use instead.
    """

    #: What ``--on`` says.
    name: ClassVar[str]
    #: Whether devices are imitated rather than present; every report says so.
    emulated: ClassVar[bool] = False
    #: Whether workers may run on other machines: nothing can be handed to them but messages.
    elsewhere: ClassVar[bool] = False

    def __init__(self, plan: Plan, layout: Layout, settings: Settings) -> None:
        self.plan, self.layout, self.settings = plan, layout, settings

    @abstractmethod
    def start(self, host: Host, job: Job) -> tuple[Endpoint, Job]:
        """Start the worker of ``host``; return it with its job, to which the launcher has added where all meet."""

    @abstractmethod
    def start_reference(self, job: Job) -> Endpoint:
        """Start the process that computes the whole model alone, on this machine."""

    def can_start(self, device: str) -> bool:
        """Whether a worker can be started for a device of the problem that has no part in the plan so far."""
        return True

    def ready(self, host: Host, endpoint: Endpoint) -> None:
        """Throttle a worker: its model is built, the requests have not begun."""

    def notes(self) -> list[str]:
        """Say what a reader of the report has to know about these machines."""
        return []
