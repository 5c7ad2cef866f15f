"""Many connections in one VM, and many VMs on one virtual network.

`python benchmarks/net_scale.py [--connections N] [--vms N]`: 0 leaves one of them out. Each VM
serves, and asks all that were there before it.
"""

from __future__ import annotations

import argparse
import os
import resource
import socket
import subprocess
import sys
import time

NETWORK = "scale"


def connections(count: int) -> str:
    """Hold `count` connections at once, and use each."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    server = socket.create_server(("127.0.0.1", 0), backlog=4096)
    pid = os.fork()
    if pid == 0:
        accepted = [server.accept()[0] for _ in range(count)]
        for sock in accepted:
            sock.sendall(sock.recv(10))
        os._exit(0)
    start = time.perf_counter()
    made = [socket.create_connection(server.getsockname()) for _ in range(count)]
    connected = time.perf_counter() - start
    for sock in made:
        sock.sendall(b"ping")
    answers = sum(sock.recv(10) == b"ping" for sock in made)
    os.waitpid(pid, 0)
    return f"{answers} connections at once, made in {connected:.1f} s"


def host(number: int) -> None:
    """One of many: ask those before, then serve until the input ends."""
    server = socket.create_server(("", 7), backlog=256)
    asked = 0
    for other in range(1, number):
        with socket.create_connection((f"10.0.0.{other}", 7), timeout=60) as sock:
            asked += sock.recv(10) == b"hello"
    print(asked, flush=True)
    while True:
        with server.accept()[0] as sock:
            sock.sendall(b"hello")


def machines(count: int) -> str:
    """Have `count` VMs on one network."""
    vms: list[subprocess.Popen[str]] = []
    start = time.perf_counter()
    try:
        for number in range(1, count + 1):
            options = ["--net", f"fabric:{NETWORK}", "--ip", f"10.0.0.{number}"]
            argv = [sys.executable, "-m", "umvm", "run", *options, "--", sys.executable, __file__]
            vm = subprocess.Popen([*argv, "--host", str(number)], stdout=subprocess.PIPE, text=True)
            vms.append(vm)
            assert vm.stdout is not None
            if int(vm.stdout.readline()) != number - 1:
                raise SystemExit(f"VM {number} didn't reach all others")
        return f"{count} VMs that reach each other, after {time.perf_counter() - start:.0f} s"
    finally:
        for vm in vms:
            vm.kill()
        for vm in vms:
            vm.wait()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--vms", type=int, default=100)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--host", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.host:
        host(options.host)
    if options.here:
        print(connections(options.connections))
        return
    if options.connections:
        here = [sys.executable, __file__, "--here", "--connections", str(options.connections)]
        subprocess.run(
            [sys.executable, "-m", "umvm", "run", "--net", "fabric", "--", *here], check=True
        )
    if options.vms:
        print(machines(options.vms))


if __name__ == "__main__":
    main()
