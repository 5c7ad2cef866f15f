"""/proc/net of a virtual host: as the host's by its form, and as netlink by what it says."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

import pytest
from harness import PYTHON, Result, Runner

Run = Callable[..., Result]
FORMS = """
for name in "tcp tcp6 udp udp6 dev route sockstat sockstat6".split():
    with open(f"/proc/net/{name}") as file:
        lines = file.read().splitlines()
    heads = [line.split()[0] for line in lines] if name.startswith("sock") else lines[: 1 + (name == "dev")]
    print(name, heads)
"""
LOOK = """
import os, socket, struct
one = socket.create_server(("10.0.0.1", 80))
with socket.create_connection(("10.0.0.1", 80)) as two:
    three, _ = one.accept()
    six = socket.create_server(("::", 81), family=socket.AF_INET6, dualstack_ipv6=True)
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", 53))
    def told(name):
        with open(name) as file:
            return [line.split() for line in file.read().splitlines()[1:]]
    def shown(sock):
        def end(name):
            ip = socket.inet_pton(sock.family, name[0])
            words = struct.unpack(f"={len(ip) // 4}I", ip)
            return "".join(f"{word:08X}" for word in words) + f":{name[1]:04X}"
        try:
            peer = end(sock.getpeername())
        except OSError:
            peer = "0" * (8 if sock.family == socket.AF_INET else 32) + ":0000"
        return end(sock.getsockname()), peer, str(os.fstat(sock.fileno()).st_ino)
    for place in ("/proc/net", "/proc/self/net", f"/proc/{os.getpid()}/net", "/proc/thread-self/net"):
        found = {(row[1], row[2], row[9]): row[3] for row in told(f"{place}/tcp")}
        print([found.pop(shown(sock), None) for sock in (one, two, three)], found)
    os.chdir("/proc/net")
    print([row[3] for row in told("tcp6") if (row[1], row[2], row[9]) == shown(six)], len(told("tcp6")))
    print([row[3] for row in told("udp") if (row[1], row[2], row[9]) == shown(udp)], len(told("udp")))
    inodes = {shown(sock)[2] for sock in (one, two, three, six, udp)}
    print([row for row in told("unix") if row[6] in inodes])
"""


@pytest.mark.parametrize("engine", ["notify", "agent"])
def test_sockets(runner: Runner, engine: str) -> None:
    options = ["--net", "fabric", "--engine", engine]
    lines = runner.umvm([*PYTHON, "-c", LOOK], options=options).ok().splitlines()
    assert lines[:4] == ["['0A', '01', '01'] {}"] * 4
    assert lines[4:] == ["['0A'] 1", "['07'] 1", "[]"]
    natively = runner.run([*PYTHON, "-c", FORMS]).ok()
    assert runner.umvm([*PYTHON, "-c", FORMS], options=options).ok() == natively


def test_programs_agree(umvm_run: Run) -> None:
    """What reads /proc/net and what asks by netlink."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    if not all(shutil.which(tool, path=path) for tool in ("netstat", "ifconfig", "ip")):
        pytest.skip("net-tools or iproute2 is not installed")
    body = """
    PATH=$PATH:/usr/sbin:/sbin
    ip addr add 10.0.0.77/24 dev eth0; ip route add 10.9.0.0/16 via 10.0.0.9; ip route del default
    netstat -rn | awk 'NR > 2 { print $1, $2, $3, $8 }' | sort; ifconfig | grep -c 'inet6 fd75'
    grep -c eth0 /proc/net/if_inet6; cat /proc/net/dev | grep -c :
    """
    lines = umvm_run(body, options=["--net", "fabric"]).stdout.splitlines()
    assert lines == [
        "10.0.0.0 0.0.0.0 255.255.255.0 eth0", "10.9.0.0 10.0.0.9 255.255.0.0 eth0", "1", "1", "2",
    ]  # fmt: skip
