"""`umvm net`: look after virtual networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from umvm.control import client
from umvm.errors import NotFound, UsageError

if TYPE_CHECKING:
    from .fabric.network import Host


@click.group()
def net() -> None:
    """Look after virtual networks (`umvm run --net fabric:NAME`)."""


_json: Callable[..., Any] = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_network: Callable[..., Any] = click.option(
    "--network", metavar="NET", help="The network (default: the only one, or the VM's)."
)


@net.command("ls")
@_json
def ls_(as_json: bool) -> None:
    """List your networks."""
    from .fabric.network import networks

    rows = [
        {"name": name, "hosts": len(hosts), "vms": sorted({host.vm for host in hosts.values()})}
        for name, hosts in networks().items()
    ]
    _show(rows, ("name", "hosts", "vms"), as_json)


@net.command()
@click.argument("name", metavar="NET")
@_json
def show(name: str, as_json: bool) -> None:
    """List the hosts of a network and the ports they listen on."""
    from .fabric.address import text
    from .fabric.network import listeners, networks

    hosts = networks().get(name)
    if hosts is None:
        raise NotFound(f"there is no network {name!r}")
    rows = [
        {
            "host": host.names[0],
            "aliases": list(host.names[1:]),
            "addresses": [text(ip) for ip in host.ips],
            "vm": host.vm,
            "link": "down" if host.down else "up",
            "ports": listeners(name, host.key),
        }
        for host in hosts.values()
    ]
    _show(rows, ("host", "aliases", "addresses", "vm", "link", "ports"), as_json)


@net.command()
@click.argument("host")
@click.argument("other", required=False)
@_network
@click.option("--down", is_flag=True, help="Unreachable, and connections are reset.")
@click.option("--up", is_flag=True, help="Reachable again.")
@click.option("--latency", metavar="20ms", help="How long what it sends and gets takes.")
@click.option("--jitter", metavar="5ms", help="Up to this is added to the latency.")
@click.option("--rate", metavar="1mbit", help="The bandwidth of each stream.")
@click.option("--drop", metavar="5%", help="The share of datagrams that are lost.")
@click.option("--clear", is_flag=True, help="No latency, no limit, no losses.")
def link(
    host: str,
    other: str | None,
    network: str | None,
    down: bool,
    up: bool,
    clear: bool,
    **given: str | None,
) -> None:
    """Change how a HOST (name or address) is connected to its network, or show it.

    With OTHER, only the way between the two hosts is meant. Streams that exist keep the latency
    and bandwidth that they have.
    """
    from .fabric.link import KINDS, parse

    if down and up:
        raise UsageError("--down and --up exclude each other")
    settings = dict.fromkeys(KINDS, 0.0) if clear else {}
    settings |= {name: parse(name, text) for name, text in given.items() if text is not None}
    name, found = _find(host, network)
    args: dict[str, Any] = {"op": "link", "network": name, **settings}
    if other is not None:  # what there is of a pair is kept by one of the two
        found, second = sorted((found, _find(other, name)[1]), key=lambda each: each.key)
        if found.key == second.key:
            raise UsageError("a host and itself have no link")
        args["other"] = second.key
    if down or up:
        args["down"] = down
    now = client.call(client.find_vm(found.vm), "net", {**args, "host": found.key})
    if not (settings or down or up):
        state = "down" if now.pop("down", False) else "up"
        click.echo(" ".join([state, *(f"{key}={value:g}" for key, value in now.items())]))


@net.command()
@click.option("--vm", "vm_name", metavar="VM", help="The VM whose network it is.")
@_network
@click.option("--out", is_flag=True, help="The other way: from the VM's host to the real machine.")
@click.option("--delete", is_flag=True, help="End the forward that listens at [ADDR:]PORT.")
@click.argument("spec", metavar="[[ADDR:]PORT:HOST:PORT]", required=False)
def forward(
    vm_name: str | None, network: str | None, out: bool, delete: bool, spec: str | None
) -> None:
    """Let a PORT of the real machine lead to a port of a host; without arguments, list them.

    ADDR is 127.0.0.1 if it isn't given; PORT 0 takes a free one, which is shown.
    """
    args: dict[str, Any] = {"op": "forward", "network": network}
    if spec is not None:
        args |= {"spec": spec, "delete": delete, "out": out}
    rows = client.call(client.find_vm(vm_name), "net", args)
    for row in rows:
        click.echo(f"{row['listen']} -> {row['to']}")


@net.command()
@click.option("-w", "path", metavar="FILE", required=True, help="The file to write (pcapng).")
@_network
def capture(path: str, network: str | None) -> None:
    """Write what is sent on a network to a FILE until a signal ends this (Ctrl-C).

    Streams that are connected while it runs are seen, and all datagrams. The packets are made up
    from what programs send: there are none.
    """
    import os
    import signal
    import threading

    from .fabric.capture import header
    from .fabric.network import networks

    name = _one_network(network)
    path = os.path.abspath(path)
    with open(path, "wb") as file:
        file.write(header())
    asked: set[str] = set()
    said = False
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    while not ended.is_set() and (hosts := networks().get(name)):
        for host in hosts.values():
            if host.key not in asked:
                asked.add(host.key)
                _ask(host, {"op": "capture", "path": path, "pid": os.getpid()}, name)
        if not said:
            click.echo(f"capturing {name}", err=True)
            said = True
        ended.wait(0.5)
    for host in networks().get(name, {}).values():
        _ask(host, {"op": "capture"}, name)


def _ask(host: Host, args: dict[str, Any], network: str) -> None:
    """Ask the VM of a host for something; it may be gone by now."""
    from umvm.errors import UmvmError

    try:
        args = {**args, "network": network, "host": host.key}
        client.call(client.find_vm(host.vm), "net", args)
    except (UmvmError, OSError):
        pass


@net.group()
def dns() -> None:
    """Names beside those of the hosts."""


@dns.command("add")
@_network
@click.argument("name")
@click.argument("address", metavar="IP")
def dns_add(network: str | None, name: str, address: str) -> None:
    """Let NAME and NAME.internal be the address IP."""
    _change_name(network, name, address)


@dns.command("rm")
@_network
@click.argument("name")
def dns_rm(network: str | None, name: str) -> None:
    """Remove a name that was added."""
    _change_name(network, name, None)


def _change_name(network: str | None, name: str, address: str | None) -> None:
    from .fabric.network import change_name

    change_name(_one_network(network), name, address)


def _one_network(network: str | None) -> str:
    """The network that is named or meant. UsageError: it isn't clear; NotFound."""
    from .fabric.network import networks

    found = list(networks())
    if network is None:
        network = _own_network() or (found[0] if len(found) == 1 else None)
    if network is None:
        raise UsageError(f"name one of the networks with --network ({', '.join(found) or 'none'})")
    if network not in found:
        raise NotFound(f"there is no network {network!r}")
    return network


def _own_network() -> str | None:
    """The network of the VM that this process is in."""
    import os

    if not os.environ.get(client.ENV):
        return None
    answer: dict[str, str] = client.call(client.find_vm(), "net", {"op": "show"})
    return answer["name"]


def _find(host: str, network: str | None) -> tuple[str, Host]:
    """The network of a host, and the host. NotFound."""
    from .fabric.network import find_host, networks

    for name, hosts in networks().items():
        if network in (None, name):
            try:
                return name, find_host(hosts, host)
            except NotFound:
                continue
    raise NotFound(f"there is no host {host!r}")


def _show(rows: list[dict[str, Any]], columns: tuple[str, ...], as_json: bool) -> None:
    from umvm.cli import show_rows

    show_rows(rows, columns, as_json)
