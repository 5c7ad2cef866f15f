"""A virtual network from outside: the way between two hosts, captures, a gateway."""

from __future__ import annotations

import json
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import PYTHON, UMVM, Result, Runner

Run = Callable[..., Result]
SERVER = """
import socket, threading
def serve(sock):
    while data := sock.recv(100):
        sock.sendall(data + b"?")
    sock.close()
def udp(sock):
    while True:
        data, sender = sock.recvfrom(100)
        sock.sendto(data + b"!", sender)
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("", 7))
threading.Thread(target=udp, args=(sock,), daemon=True).start()
server = socket.create_server(("", 7))
while True:
    threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
"""
ASK = """
import socket, sys, time
def tcp(host):
    with socket.create_connection((host, 7)) as sock:
        sock.sendall(b"hello")
        return sock.recv(100)
def udp(host):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.sendto(b"dg", (host, 7))
        return sock.recvfrom(100)
def connected(host):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.connect((host, 7))
        sock.send(b"dc")
        return sock.recv(100)
start = time.monotonic()
for host in sys.argv[1:]:
    for ask in (tcp, udp, connected):
        try:
            print(host, ask(host))
        except OSError as error:
            print(host, error.errno)
print(time.monotonic() - start > 0.15)
"""
GOOD = "b'hello?'|(b'dg!', ('{0}', 7))|b'dc!'"


def answers(good: dict[str, bool]) -> list[str]:
    """What ASK prints: hosts that answer, and some that can't be reached."""
    found = []
    for host, works in good.items():
        shown = GOOD.format(host) if works else "113|113|113"
        found += [f"{host} {line}" for line in shown.split("|")]
    return found


def packets(data: bytes) -> Iterator[tuple[int, bytes, bytes, bytes]]:
    """(protocol, source, target, segment) of a capture. Fails if it is none."""
    at = 0
    while at < len(data):
        kind, size = struct.unpack_from("<II", data, at)
        assert size % 4 == 0 and struct.unpack_from("<I", data, at + size - 4) == (size,)
        if kind == 6:
            (length,) = struct.unpack_from("<I", data, at + 20)
            packet = data[at + 28 : at + 28 + length]
            assert packet[0] == 0x45 and struct.unpack_from(">H", packet, 2) == (length,)
            yield packet[9], packet[12:16], packet[16:20], packet[20:]
        at += size


def test_the_way_between_two_hosts_and_a_capture(umvm_run: Run, tmp_path: Path) -> None:
    for name, text in (("server.py", SERVER), ("ask.py", ASK)):
        (tmp_path / name).write_text(text)
    umvm, python, hosts = " ".join(UMVM), " ".join(PYTHON), "10.0.0.5 10.0.0.6"
    body = f"""
    for n in 4 5 6; do {umvm} mount -t net -o ip=10.0.0.$n,name=h$n fabric:u /dev/net/$n; done
    for n in 5 6; do {umvm} stack /dev/net/$n {python} {tmp_path}/server.py & servers="$servers $!"; done
    until [ "$({umvm} net show u --json | grep -c tcp/7)" = 2 ]; do sleep 0.1; done
    ask() {{ {umvm} stack /dev/net/4 {python} {tmp_path}/ask.py {hosts}; }}
    {umvm} net capture -w {tmp_path}/x.pcapng --network u 2>said & capture=$!
    until grep -q capturing said; do sleep 0.1; done
    ask; kill $capture; wait $capture; ls -s {tmp_path}/x.pcapng >size
    {umvm} net link h4 h5 --down; {umvm} net link h5 h4; ask
    {umvm} net link h5 h4 --up --latency 30ms; {umvm} net link h4 h5; ask
    {umvm} net link h4 h5 --clear; {umvm} net link h5 h4; {umvm} net link h4; ask | tail -1
    {umvm} net link h4 h4 2>/dev/null; echo $?; ls -s {tmp_path}/x.pcapng | cmp - size
    kill $servers
    """
    lines = umvm_run(f"cd {tmp_path}\n{body}").stdout.splitlines()
    both = answers({"10.0.0.5": True, "10.0.0.6": True})
    assert lines[:6] == both and lines[6] in ("True", "False")
    assert lines[7] == "down"
    assert lines[8:14] == answers({"10.0.0.5": False, "10.0.0.6": True})
    assert lines[15] == "up latency=0.03"
    assert lines[16:23] == [*both, "True"]
    assert lines[23:25] == ["up", "up"] and lines[26:] == ["2"]
    found = list(packets((tmp_path / "x.pcapng").read_bytes()))
    client, server = bytes([10, 0, 0, 4]), bytes([10, 0, 0, 5])
    sent = [s for p, a, b, s in found if (p, a, b) == (6, client, server)]
    assert sent[0][13] == 2 and [s[20:] for s in sent if len(s) > 20] == [b"hello"]
    back = [s for p, a, b, s in found if (p, a, b) == (6, server, client)]
    assert back[0][13] == 18 and [s[20:] for s in back if len(s) > 20] == [b"hello?"]
    assert [s[8:] for p, a, b, s in found if (p, a, b) == (17, client, server)] == [b"dg", b"dc"]
    assert [s[8:] for p, a, b, s in found if (p, a, b) == (17, server, client)] == [b"dg!", b"dc!"]
    if shutil.which("tshark"):
        argv = ["tshark", "-r", str(tmp_path / "x.pcapng"), "-q", "-z", "follow,tcp,ascii,0"]
        text = subprocess.run(argv, capture_output=True, text=True, timeout=60).stdout
        assert "hello" in text and "hello?" in text


# --- the gateway ----------------------------------------------------------------------------------


@pytest.fixture
def outside() -> Iterator[tuple[str, int]]:
    """A server at an address of this machine that isn't a loopback one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no address but the loopback one")
        address = probe.getsockname()[0]
    with (
        socket.create_server((address, 0)) as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
    ):
        datagrams.bind(server.getsockname())

        def serve() -> None:
            while True:
                try:
                    sock, _ = server.accept()
                except OSError:
                    return
                with sock:
                    while data := sock.recv(65536):
                        sock.sendall(data)

        def answer() -> None:
            while True:
                data, sender = datagrams.recvfrom(100)
                if not data:
                    return
                datagrams.sendto(data + b"!", sender)

        for work in (serve, answer):
            threading.Thread(target=work, daemon=True).start()
        yield server.getsockname()
        datagrams.sendto(b"", datagrams.getsockname())  # ends its thread


OUT = """
import errno, select, socket, sys
to = sys.argv[1], int(sys.argv[2])
def stream():
    with socket.create_connection(to) as sock:
        sock.sendall(b"x" * 300000)
        sock.shutdown(socket.SHUT_WR)
        got = 0
        while data := sock.recv(65536):
            got += len(data)
        return got, sock.getpeername() == to
def waits_not():
    with socket.socket() as sock:
        sock.setblocking(False)
        first = errno.errorcode[sock.connect_ex(to)]
        if first != "EINPROGRESS":
            return first
        return first, bool(select.select([], [sock], [], 5)[1]), sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
def datagram(connect):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        if connect:
            sock.connect(to)
            sock.send(b"c")
        else:
            sock.sendto(b"d", to)
        data, sender = sock.recvfrom(100)
        return data, sender == to
for work in (stream, waits_not, lambda: datagram(False), lambda: datagram(True)):
    try:
        print(work())
    except OSError as error:
        print(errno.errorcode[error.errno])
"""
ALL = ["(300000, True)", "('EINPROGRESS', True, 0)", "(b'd!', True)", "(b'c!', True)"]


def test_a_gateway(runner: Runner, outside: tuple[str, int]) -> None:
    host, port = outside
    argv = [*PYTHON, "-c", OUT, host, str(port)]

    def through(*options: str) -> list[str]:
        net = ",".join(("fabric", *options))
        return runner.umvm(argv, options=["--net", net]).ok().splitlines()

    assert through("gateway=on") == ALL
    assert through() == ["ENETUNREACH"] * 4
    assert through("gateway=on", f"deny=tcp://{host}", "allow=*") == ["EACCES", "EACCES", *ALL[2:]]
    bad = runner.umvm("true", options=["--net", "fabric,allow=*"])
    assert bad.status == 2 and "gateway=on" in bad.stderr


def test_the_gateway_asks_for_names_outside(runner: Runner) -> None:
    """Names of the network first, others from the nameservers that the options say."""
    answer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    answer.bind(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            query, sender = answer.recvfrom(2000)
            if not query:
                return
            end = query.index(b"\0", 12) + 5
            head = query[:2] + struct.pack(">5H", 0x8180, 1, 1, 0, 0)
            kind = query[end - 4 : end - 2]
            record = b"\xc0\x0c" + struct.pack(">HHIH4s", 1, 1, 60, 4, bytes([192, 0, 2, 7]))
            if kind != b"\0\1":
                head, record = query[:2] + struct.pack(">5H", 0x8180, 1, 0, 0, 0), b""
            answer.sendto(head + query[12:end] + record, sender)

    server = threading.Thread(target=serve, daemon=True)
    server.start()
    dns = f"dns=127.0.0.1:{answer.getsockname()[1]}"
    source = """
import json, socket
def look(name):
    try:
        return sorted({found[4][0] for found in socket.getaddrinfo(name, 80, socket.AF_INET)})
    except OSError:
        return None
print(json.dumps([look("www.example.org"), look("lone.internal"), look("none.internal")]))
"""
    options = ["--net", f"fabric,gateway=on,{dns}", "--name", "lone"]
    shown = json.loads(runner.umvm([*PYTHON, "-c", source], options=options).ok())
    answer.sendto(b"", answer.getsockname())
    server.join(10)
    answer.close()
    assert shown == [["192.0.2.7"], ["10.0.0.1"], None]
