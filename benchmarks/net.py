"""Streams and datagrams over the host's loopback interface and over a virtual network.

Runs are interleaved; the table shows medians, and what the fabric reaches of the host's numbers.
`python benchmarks/net.py [--rounds N] [--json]`.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable

LOCAL = "127.0.0.1"
TOTAL = 1 << 30
PIECE = 1 << 18


def _child(work: Callable[[], object]) -> int:
    pid = os.fork()
    if pid == 0:
        work()
        os._exit(0)
    return pid


def throughput() -> float:
    """GB/s of one stream."""
    server = socket.create_server((LOCAL, 0))

    def drain() -> None:
        sock, _ = server.accept()
        buffer = bytearray(PIECE)
        while sock.recv_into(buffer):
            pass

    pid = _child(drain)
    with socket.create_connection(server.getsockname()) as sock:
        data = b"x" * PIECE
        start = time.perf_counter()
        for _ in range(TOTAL // PIECE):
            sock.sendall(data)
    os.waitpid(pid, 0)
    return TOTAL / (time.perf_counter() - start) / 1e9


def request_response(count: int = 10_000) -> float:
    """Thousands of requests of 4 bytes, and responses, per second on one connection."""
    server = socket.create_server((LOCAL, 0))

    def echo() -> None:
        sock, _ = server.accept()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := sock.recv(100):
            sock.sendall(data)

    pid = _child(echo)
    with socket.create_connection(server.getsockname()) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        start = time.perf_counter()
        for _ in range(count):
            sock.sendall(b"ping")
            sock.recv(100)
        rate = count / (time.perf_counter() - start) / 1e3
    os.waitpid(pid, 0)
    return rate


def connections(count: int = 1500) -> float:
    """Thousands of connections made and closed per second."""
    server = socket.create_server((LOCAL, 0))

    def accept() -> None:
        for _ in range(count):
            server.accept()[0].close()

    pid = _child(accept)
    start = time.perf_counter()
    for _ in range(count):
        with socket.create_connection(server.getsockname()) as sock:
            sock.recv(1)
    os.waitpid(pid, 0)
    return count / (time.perf_counter() - start) / 1e3


def datagrams(count: int = 3000) -> float:
    """Thousands of datagrams sent with an address, and answered, per second."""
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind((LOCAL, 0))

    def echo() -> None:
        for _ in range(count):
            data, sender = server.recvfrom(100)
            server.sendto(data, sender)

    pid = _child(echo)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        start = time.perf_counter()
        for _ in range(count):
            sock.sendto(b"ping", server.getsockname())
            sock.recv(100)
        rate = count / (time.perf_counter() - start) / 1e3
    os.waitpid(pid, 0)
    return rate


MEASURES: dict[str, Callable[[], float]] = {
    "stream GB/s": throughput,
    "request/response k/s": request_response,
    "connections k/s": connections,
    "datagrams k/s": datagrams,
}


def main() -> None:
    """Measure and print; with --here in this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        print(json.dumps({name: measure() for name, measure in MEASURES.items()}))
        return
    here = [sys.executable, __file__, "--here"]
    run = [sys.executable, "-m", "umvm", "run", "--net", "fabric"]
    ways = {
        "host": here,
        "fabric": [*run, "--", *here],
        "fabric, agent": [*run, "--engine", "agent", "--", *here],
    }
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for _ in range(options.rounds):
        for way, argv in ways.items():
            done = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=300)
            for name, value in json.loads(done.stdout).items():
                found[name][way].append(value)
    medians = {
        name: {way: statistics.median(values) for way, values in by_way.items()}
        for name, by_way in found.items()
    }
    if options.json:
        print(json.dumps(medians))
        return
    print(f"{'':22}" + "".join(f"{way:>16}" for way in ways))
    for name, by_way in medians.items():
        cells = [f"{by_way[way]:9.2f} {by_way[way] / by_way['host']:5.2f}x" for way in ways]
        print(f"{name:22}" + "".join(f"{cell:>16}" for cell in cells))


if __name__ == "__main__":
    main()
