"""The verb that measures a link: profile link, between two processes or two machines."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeopt.cli.common import Json, Output, duration, hand_over, progress_line, writable

if TYPE_CHECKING:
    from edgeopt.profiles.network import Network

__all__ = ["profile_link"]

_LOOPBACK = ("loopback", "localhost", "127.0.0.1", "::1")


def profile_link(
    context: typer.Context,
    host: Annotated[
        str | None, typer.Argument(metavar="HOST[:PORT]", help="The machine that listens, or loopback for this one.")
    ] = None,
    output: Output = None,
    listen: Annotated[
        str | None, typer.Option(metavar="ADDRESS[:PORT]", help="Be the other end: wait there, and nowhere else.")
    ] = None,
    token: Annotated[str | None, typer.Option(help="Of this run, as --listen printed it.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the network profile; default: after the host.")] = None,
    devices: Annotated[
        str | None, typer.Option(metavar="HERE,THERE", help="Name the two devices: one link for each direction.")
    ] = None,
    repeats: Annotated[int, typer.Option(help="Messages timed of each size.")] = 40,
    pause: Annotated[
        str, typer.Option(metavar="DURATION", help="How long the receiver sleeps before each message.")
    ] = "20 ms",
    timeout: Annotated[str, typer.Option(metavar="DURATION", help="For the whole measurement.")] = "120 s",
    json: Json = False,
) -> None:
    """Measure what messages between two machines take, and write it as a network profile.

    On one machine: `edgeopt profile link --listen ADDRESS`, which prints the command for the other.
    """
    writable(output)
    seconds = {"pause_s": duration("--pause", pause), "timeout_s": duration("--timeout", timeout)}
    if listen is not None:
        if host is not None or output is not None:
            raise _refused("--listen", "the side that listens writes nothing", "give HOST and -o on the other side")
        _serve(listen, token, float(seconds["timeout_s"] or 0.0), json)
        return
    if host is None:
        raise _refused("HOST", "there is no machine to measure to", "name one, or loopback for this machine alone")
    local = host.lower() in _LOOPBACK
    pair = _pair(devices, local)
    if not local and token is None:
        command = f"edgeopt profile link --listen {host}"
        raise _refused("--token", f"is missing for '{host}'", f"run `{command}` there and use what it prints")
    profile_name = name or ("loopback" if local else f"link-{host.partition(':')[0]}")
    with progress_line(json) as progress:
        options: dict[str, Any] = {"repeats": repeats, **seconds, "progress": progress}
        if local:
            network = _loopback(profile_name, str(context.obj), options)
        else:
            network = _between(host, str(token), profile_name, pair, _without(str(context.obj), str(token)), options)
    hand_over(network, output, json)


def _loopback(name: str, command: str, options: dict[str, Any]) -> Network:
    from datetime import date

    from edgeopt.profiler import profile_link as measure
    from edgeopt.profiles.network import Network

    source = f"measured on {date.today().isoformat()} by {command} between two processes over the loopback interface"
    return Network(name=name, source=source, default=measure(**options))


def _between(
    host: str, token: str, name: str, pair: tuple[str, str] | None, command: str, options: dict[str, Any]
) -> Network:
    from datetime import date

    from edgeopt.executor.meeting import parse_address
    from edgeopt.profiler.link import LinkRequest, measure_peer
    from edgeopt.profiles.network import Link, Network

    address, port = parse_address(host, "HOST")
    progress = options.pop("progress")
    found = measure_peer(address, port, token, LinkRequest(**options), progress)
    source = (
        f"measured on {date.today().isoformat()} by {command}, {found.own_address} to {found.peer_address} and back "
        "through torch.distributed (gloo); the receiver slept before every message"
    )
    if pair is None:
        slower = max(found.there, found.back, key=lambda one: one.latency + 1e6 / float(one.rate or 1.0))
        way = "there" if slower is found.there else "back"
        return Network(name=name, source=f"{source}; the slower direction: {way}", default=slower)
    here, there = pair
    links = [
        Link.model_validate({**one.model_dump(), "from": a, "to": b})
        for one, a, b in ((found.there, here, there), (found.back, there, here))
    ]
    return Network(name=name, source=source, links=links)


def _serve(listen: str, token: str | None, timeout_s: float, json: bool) -> None:
    import secrets

    from edgeopt.cli.common import print_json
    from edgeopt.executor.meeting import listen as open_listener
    from edgeopt.executor.meeting import parse_address
    from edgeopt.profiler.link import serve_peer

    host, port = parse_address(listen, "--listen")
    token = token or secrets.token_hex(8)
    with open_listener(host, port) as listener, progress_line(json) as progress:
        where = f"[{host}]" if ":" in host else host
        command = f"edgeopt profile link {where}:{listener.getsockname()[1]} --token {token}"
        print(f"on the other machine: {command}", file=sys.stderr, flush=True)
        peer = serve_peer(listener, token, timeout_s, progress)
    if json:
        print_json({"measured_with": peer})
    else:
        print(f"measured with {peer}; the profile is written there")


def _pair(devices: str | None, local: bool) -> tuple[str, str] | None:
    if devices is None:
        return None
    names = [name.strip() for name in devices.split(",")]
    if local or len(names) != 2 or not all(names) or names[0] == names[1]:
        what = "loopback has one device" if local else f"'{devices}' is not two names"
        raise _refused("--devices", what, "write HERE,THERE for two machines, for example laptop,desktop")
    return names[0], names[1]


def _without(command: str, token: str) -> str:
    """Leave the token out of what the profile cites."""
    return command.replace(token, "…")


def _refused(field: str, message: str, mend: str) -> Exception:
    from edgeopt.errors import Finding, InputError

    return InputError(Finding(field, message, mend))
