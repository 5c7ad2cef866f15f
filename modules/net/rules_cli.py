"""`umvm net log`: what rules have denied."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from umvm.control import client


@click.command("log")
@click.option("--vm", "vm_name", metavar="VM", help="The VM (default: the one you are in).")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def log(vm_name: str | None, as_json: bool) -> None:
    """Show what the rules of `--net` have denied, the oldest first."""
    for entry in client.call(client.find_vm(vm_name), "net", {"op": "log"}):
        click.echo(json.dumps(entry) if as_json else _line(entry))


def _line(entry: dict[str, Any]) -> str:
    at = time.strftime("%H:%M:%S", time.localtime(entry["time"]))
    names = f" ({', '.join(entry['names'])})" if entry["names"] else ""
    host = f"[{entry['address']}]" if ":" in entry["address"] else entry["address"]
    return (
        f"{at} {entry['program']}[{entry['pid']}] {entry['direction']} {entry['protocol']} "
        f"{host}:{entry['port']}{names}: {entry['why']}"
    )
