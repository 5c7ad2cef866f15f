"""Hosts of a virtual network, seen and changed by netlink."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import PYTHON, Result, Runner, wait_until

HARMLESS = ["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin"]
"""Root's guests can't change the host's network, whatever goes wrong."""
SERVER = """
import socket, sys
server = socket.create_server(("", 80))
open(sys.argv[1], "w").close()
while True:
    sock, name = server.accept()
    sock.sendall(name[0].encode())
    sock.close()
"""
ASK = "import socket,sys; print(socket.create_connection((sys.argv[1], 80), 10).recv(99).decode())"
Vm = Callable[[str], Result]


@pytest.fixture
def vm(runner: Runner, tmp_path: Path) -> Iterator[Vm]:
    """Runs bash text on 10.0.0.3, beside a server on 10.0.0.2 that tells who connects."""
    for tool in ("ip", "ss", "bash", "setpriv"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    network = f"fabric:t{secrets.token_hex(3)}"
    ready = tmp_path / "ready"
    server = runner.start_umvm(
        [*PYTHON, "-c", SERVER, str(ready)], options=["--net", network, "--ip", "10.0.0.2"]
    )
    assert wait_until(ready.exists)

    def run(text: str) -> Result:
        words = " ".join(PYTHON)
        text = f"ask() {{ {words} -c '{ASK}' $1 2>&1 | tail -n 1; }}\nexec 2>&1\n{text}"
        options = ["--net", network, "--ip", "10.0.0.3"]
        argv = runner.umvm_argv(["bash", "-c", text], (), (), options)
        return runner.run([*HARMLESS, *argv] if os.geteuid() == 0 else argv)

    yield run
    server.terminate()
    server.wait(20)


def test_links_addresses_routes_and_sockets_are_shown(vm: Vm) -> None:
    lines = (
        vm(
            f"""
        ip -br addr; ip route; ip route get 10.0.0.2 | head -n 1 | cut -d ' ' -f 1-5
        {" ".join(PYTHON)} -c 'import socket, subprocess
s = socket.create_server(("10.0.0.3", 81)); c = socket.create_connection(("10.0.0.2", 80))
subprocess.run("ss -tanH", shell=True)'
        """
        )
        .ok()
        .splitlines()
    )
    assert [line.split() for line in lines] == [
        ["lo", "UNKNOWN", "127.0.0.1/8", "::1/128"],
        ["eth0", "UP", "10.0.0.3/24", "fd75:6d76:6d00::a00:3/64"],
        ["default", "dev", "eth0", "scope", "link"],
        "10.0.0.0/24 dev eth0 proto kernel scope link src 10.0.0.3".split(),
        ["10.0.0.2", "dev", "eth0", "src", "10.0.0.3"],
        ["LISTEN", "0", "0", "10.0.0.3:81", "0.0.0.0:*"],
        ["ESTAB", "0", "0", lines[6].split()[3], "10.0.0.2:80"],
    ]


def test_names_and_numbers_of_interfaces(vm: Vm) -> None:
    """On an AF_UNIX socket, as the C library asks."""
    source = (
        "import socket as s; print(s.if_nametoindex('eth0'), s.if_indextoname(2), s.if_nameindex())"
    )
    shown = vm(f"""{" ".join(PYTHON)} -c "{source}" """).ok()
    assert shown == "2 eth0 [(1, 'lo'), (2, 'eth0')]\n"


def test_changes_take_effect(vm: Vm) -> None:
    shown = vm(
        """
        ask 10.0.0.2
        ip route add unreachable 10.0.0.2; ask 10.0.0.2; ip route del unreachable 10.0.0.2
        ip addr add 10.0.0.77/24 dev eth0; grep -c 10.0.0.77 /etc/hosts
        ip addr add 10.0.0.2/24 dev eth0
        ip addr add 10.5.0.1/16 dev eth0; ip addr del 10.0.0.3/24 dev eth0; ask 10.0.0.2
        ip link set eth0 down; ask 10.0.0.2; ip link set eth0 up; ask 10.0.0.2
        ip addr add 10.0.0.3/24 dev eth0; ask 10.0.0.2
        ip route del 10.0.0.0/24; ask 10.0.0.2
        """
    ).ok()
    assert shown.splitlines() == [
        "10.0.0.3",
        "OSError: [Errno 113] No route to host",
        "1",
        "Error: another host has this address.",
        "10.5.0.1",
        "OSError: [Errno 101] Network is unreachable",
        "OSError: [Errno 101] Network is unreachable",
        "10.0.0.3",
        "OSError: [Errno 101] Network is unreachable",
    ]
