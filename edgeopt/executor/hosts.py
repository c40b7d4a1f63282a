"""The hosts file: which machine is which device of a plan.

::

    coordinator: 192.168.1.7          # where `edgeopt execute` waits for the workers; a port may follow
    devices:
      laptop: {address: 192.168.1.7}
      phone: {address: 192.168.1.12, user: me, ssh_port: 8022, python: venv/bin/python}

Nothing in it is run as a program but what ``python`` names, and nothing is expanded by a shell.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterator, Sequence
from typing import Annotated

from pydantic import Field, ValidationError

from edgeopt.errors import InputError
from edgeopt.profiles.base import Strict
from edgeopt.profiles.findings import translate
from edgeopt.profiles.reader import Flaw, read_document

__all__ = ["DEFAULT_TORCHRUN_PORT", "HostEntry", "Hosts", "load_hosts"]

DEFAULT_TORCHRUN_PORT = 29612

# None begins with "-", which ssh would take for an option.
_Address = Annotated[str, Field(pattern=r"^[A-Za-z0-9:\[][A-Za-z0-9.:%_\[\]-]*$", max_length=255)]
_Port = Annotated[int, Field(ge=1, le=65535)]


class HostEntry(Strict):
    """One machine.

    Attributes
    ----------
    address
        By which the others reach it; its worker listens there and nowhere else.
    user, ssh_port
        For SSH; what is missing, SSH takes from its own configuration.
    python
        That has edgeopt installed there.
    resources
        What a Ray actor of this device asks for besides its address.
    """

    address: _Address
    user: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$", max_length=64)
    ssh_port: _Port | None = None
    python: str = Field(default="python3", pattern=r"^[^-\s\x00][^\x00\n]*$", max_length=1024)
    resources: dict[str, float] = Field(default={})


class Hosts(Strict):
    """All machines of a run.

    Attributes
    ----------
    coordinator
        ``HOST`` or ``HOST:PORT``; without a port the system chooses one.
    devices
        By the plan's names.
    torchrun
        Whether torchrun starts the workers. It listens on every interface of the source's machine, without a token; a
        worker that Python starts alone does not.
    torchrun_port
        Where torchrun's processes meet, on the source's machine.
    """

    coordinator: _Address
    devices: dict[str, HostEntry] = Field(min_length=1)
    torchrun: bool = True
    torchrun_port: _Port = DEFAULT_TORCHRUN_PORT


def load_hosts(path: str | os.PathLike[str], devices: Sequence[str]) -> Hosts:
    """Read a hosts file.

    Parameters
    ----------
    devices
        Names of the devices that have a part in the plan; others in the file are of no concern.

    Raises
    ------
    InputError
        Unreadable, wrong in a field, or a device has no machine; every finding has its line and its mend.
    """
    document = read_document(path)
    try:
        hosts = Hosts.model_validate(document.data)
    except ValidationError as error:
        raise InputError([document.finding(*flaw) for flaw in translate(error, Hosts, document.data)]) from None
    if flaws := list(_flaws(hosts, devices)):
        raise InputError([document.finding(*flaw) for flaw in flaws])
    return hosts


def _flaws(hosts: Hosts, devices: Sequence[str]) -> Iterator[Flaw]:
    from edgeopt.executor.meeting import parse_address

    try:
        coordinator, _ = parse_address(hosts.coordinator, "coordinator", 0)
    except InputError as error:
        yield Flaw(("coordinator",), error.findings[0].message, "write HOST or HOST:PORT")
        return
    if _is(coordinator, "is_unspecified"):
        mend = "name the address by which the devices reach this machine"
        yield Flaw(("coordinator",), f"'{coordinator}' would listen on every interface", mend)
    for name in devices:
        if name not in hosts.devices:
            mend = f"write which machine it is: {name}: {{address: …}}"
            yield Flaw(("devices",), f"'{name}' has a part in the plan and is missing", mend)
            continue
        address = hosts.devices[name].address
        if _is(address, "is_unspecified"):
            mend = "name the address by which the other devices reach it"
            yield Flaw(("devices", name, "address"), f"'{address}' would listen on every interface", mend)
        elif _is(coordinator, "is_loopback") and not (_is(address, "is_loopback") or address == "localhost"):
            mend = f"name the address by which '{name}' reaches this machine"
            yield Flaw(("coordinator",), f"'{coordinator}' cannot be reached from '{address}'", mend)


def _is(address: str, what: str) -> bool:
    """Judge an address by its number; names are left to the system."""
    try:
        return bool(getattr(ipaddress.ip_address(address.partition("%")[0]), what))
    except ValueError:
        return address == "localhost" and what == "is_loopback"
