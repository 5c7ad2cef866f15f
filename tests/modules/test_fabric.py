"""The stack fabric: the host's loopback is the oracle for one host; then several hosts."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import GUESTS, PYTHON, UMVM, Result, Runner, wait_until

Run = Callable[..., Result]
FABRIC = ["--net", "fabric"]
STACK = " ".join([*UMVM, "stack"])
NET = " ".join([*UMVM, "net"])


@pytest.mark.parametrize("guest", ["fabric_streams", "fabric_datagrams"])
@pytest.mark.parametrize("engine", ["notify", "agent"])
def test_calls_answer_as_on_the_host(runner: Runner, guest: str, engine: str) -> None:
    argv = [*PYTHON, "-W", "ignore", str(GUESTS / f"{guest}.py")]
    host = runner.run(argv).ok()
    assert runner.umvm(argv, options=[*FABRIC, "--engine", engine]).ok() == host
    assert host.count("\n") > 20


# --- one host -------------------------------------------------------------------------------------


def test_programs_on_one_host(umvm_run: Run) -> None:
    """Port 80 without privilege, a server that forks, names."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    source = """
import http.server, os, subprocess, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        text = f"{self.client_address[0]} {self.connection.getsockname()}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
    def log_message(self, *args):
        pass
server = http.server.HTTPServer(("", 80), Handler)
if os.fork() == 0:
    server.handle_request()
    server.handle_request()
    os._exit(0)
server.socket.close()
for url in ("http://10.0.0.7/", "http://lone.internal"):
    subprocess.run(["curl", "-sS", "-4", "--noproxy", "*", url], check=True)
    print(flush=True)
os.wait()
"""
    options = ["--net", "fabric", "--ip", "10.0.0.7", "--name", "lone"]
    shown = umvm_run([*PYTHON, "-c", source], options=options).ok()
    assert shown == "10.0.0.7 ('10.0.0.7', 80)\n" * 2


def test_names(umvm_run: Run) -> None:
    def look() -> list[object]:
        import socket

        query = b"\\0\\1\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0\\3one\\10internal\\0\\0\\1\\0\\1".decode(
            "unicode_escape"
        )
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(query.encode("latin1"), ("127.0.0.53", 53))
            reply, server = sock.recvfrom(512)
        infos = socket.getaddrinfo("one.internal", 80, type=socket.SOCK_STREAM)
        return [
            sorted(info[4][0] for info in infos),
            socket.gethostbyaddr("10.0.0.1")[0],
            server,
            reply[3] & 15,
            socket.inet_ntoa(reply[-4:]),
            open("/etc/resolv.conf").readline(),
        ]

    expected = [
        ["10.0.0.1", "fd75:6d76:6d00::a00:1"],
        "one.internal",
        ("127.0.0.53", 53),
        0,
        "10.0.0.1",
        "nameserver 127.0.0.53\n",
    ]
    result = umvm_run(look, options=["--net", "fabric", "--name", "one"])
    assert result.ok() == f"result {expected}\n"


def test_many_connections(umvm_run: Run) -> None:
    def connect() -> tuple[int, int]:
        import selectors
        import socket

        server = socket.create_server(("", 0), backlog=128)
        pairs = []
        for number in range(400):
            client = socket.create_connection(server.getsockname())
            accepted, name = server.accept()
            assert name == client.getsockname()
            client.send(b"%d" % number)
            pairs.append((client, accepted))
        select = selectors.DefaultSelector()
        for number, (_, accepted) in enumerate(pairs):
            select.register(accepted, selectors.EVENT_READ, number)
        ready = [key.data for key, _ in select.select()]
        right = sum(pairs[number][1].recv(9) == b"%d" % number for number in ready)
        return right, len({client.getsockname() for client, _ in pairs})

    assert umvm_run(connect, options=FABRIC).ok() == "result (400, 400)\n"


def test_a_descriptor_that_travels_is_the_same_socket(umvm_run: Run) -> None:
    def travel() -> list[object]:
        import os
        import socket

        server = socket.create_server(("127.0.0.1", 0))
        here, there = socket.socketpair()
        if os.fork() == 0:
            _, fds, _, _ = socket.recv_fds(there, 1, 1)
            received = socket.socket(fileno=os.dup(fds[0]))
            there.send(repr((received.family == socket.AF_INET, received.getsockname())).encode())
            received.accept()
            os._exit(0)
        socket.send_fds(here, [b"x"], [server.fileno()])
        name = server.getsockname()
        server.close()
        told = here.recv(100).decode()
        socket.create_connection(name).close()
        os.wait()
        return [told == repr((True, name))]

    assert umvm_run(travel, options=FABRIC).ok() == "result [True]\n"


def test_loopback_is_private(umvm_run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        body = f"""
import socket
print(socket.socket().connect_ex(("127.0.0.1", {port})))
print(socket.create_server(("127.0.0.1", {port})).getsockname()[1] == {port})
"""
        assert umvm_run([*PYTHON, "-c", body], options=FABRIC).ok() == "111\nTrue\n"


def test_interfaces(umvm_run: Run) -> None:
    def ask() -> list[object]:
        import fcntl
        import socket
        import struct

        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        got: list[object] = []
        for command in (0x8915, 0x891B, 0x8919):
            raw = fcntl.ioctl(sock, command, struct.pack("16s24x", b"eth0"))
            got.append(socket.inet_ntoa(raw[20:24]))
        for name in (b"lo", b"nope"):
            try:
                raw = fcntl.ioctl(sock, 0x8913, struct.pack("16s24x", name))
                got.append(struct.unpack_from("<H", raw, 16)[0])
            except OSError as error:
                got.append(error.errno)
        return got

    expected = ["10.0.0.9", "255.255.255.0", "10.0.0.255", 0x49, 19]
    result = umvm_run(ask, options=[*FABRIC, "--ip", "10.0.0.9"])
    assert result.ok() == f"result {expected}\n"


def test_open_sockets_keep_the_module(umvm_run: Run) -> None:
    umvm = " ".join(UMVM)
    source = f"""
import socket, subprocess
server = socket.create_server(("", 80))
for text in ("rmmod net", "rmmod --force net", "insmod net default=null", "rmmod net"):
    done = subprocess.run("{umvm} " + text, shell=True, capture_output=True, text=True)
    print(done.returncode, done.stderr, end=";")
    server.close() if "insmod" in text else None
"""
    shown = umvm_run([*PYTHON, "-c", source], options=FABRIC).ok()
    assert shown == "16 umvm: module net is in use by 1 mount or socket\n;0 ;0 ;0 ;"


@pytest.mark.parametrize("options", [["--ip", "x"], ["--ip", "127.0.0.1"], ["--ip", "224.0.0.1"]])
def test_bad_addresses_are_refused(umvm_run: Run, options: list[str]) -> None:
    result = umvm_run("echo never", options=[*FABRIC, *options])
    assert (result.status, result.stdout, result.stderr.count("\n")) == (2, "", 1)


@pytest.mark.parametrize("seed", ["1", "2"])
def test_senseless_arguments(umvm_run: Run, seed: str) -> None:
    """The supervisor logs nothing, and goes on."""
    argv = [*PYTHON, str(GUESTS / "fabric_fuzz.py"), seed, "1200"]
    assert umvm_run(argv, options=FABRIC).ok() == "done\n"


MANY = """
import os, socket, sys
from umvm.control import client
def handed_on():
    return client.call(client.find_vm(), "info", {})["counts"]["claimed"]
def connect(count):
    server = socket.create_server(("127.0.0.1", 0), backlog=4096)
    pid = os.fork()
    if pid == 0:
        for sock in [server.accept()[0] for _ in range(count)]:
            sock.sendall(sock.recv(10))
        os._exit(0)
    made = [socket.create_connection(server.getsockname()) for _ in range(count)]
    for sock in made:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(sock.getsockname()[1].to_bytes(2, "big"))
    same = sum(sock.recv(10) == sock.getsockname()[1].to_bytes(2, "big") for sock in made)
    os.waitpid(pid, 0)
    return same, len({sock.getsockname() for sock in made}), {sock.getpeername() for sock in made} == {server.getsockname()}
before = handed_on()
print(connect(900), connect(300), connect(900))
print(handed_on() - before < 400)
"""


@pytest.mark.parametrize("engine", ["notify", "agent"])
def test_connections_without_the_interpreter(runner: Runner, engine: str) -> None:
    """The engine answers for them without the interpreter; old ones are forgotten meanwhile."""
    options = [*FABRIC, "--engine", engine]
    shown = runner.umvm([sys.executable, "-c", MANY], options=options).ok()
    assert shown == "(900, 900, True) (300, 300, True) (900, 900, True)\nTrue\n"


# --- several hosts --------------------------------------------------------------------------------

ECHO = """
import socket, sys
server = socket.create_server(("", 7))
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("", 7))
group = socket.inet_aton("224.1.2.3") + b"\\0" * 4
udp.setsockopt(0, socket.IP_ADD_MEMBERSHIP, group)
while True:
    one, name = server.accept()
    one.sendall(name[0].encode() + b" " + one.getsockname()[0].encode())
    one.settimeout(10)
    what = one.recv(100)
    if what == b"udp":
        for _ in range(3):
            data, sender = udp.recvfrom(100)
            udp.sendto(data + sender[0].encode(), sender)
    elif what == b"end":
        break
"""


@pytest.fixture
def server(runner: Runner) -> Iterator[subprocess.Popen[bytes]]:
    """A VM called `server` on the network `t`, 10.0.0.2, that runs ECHO."""
    vm = runner.start_umvm(
        [*PYTHON, "-c", ECHO], options=["--net", "fabric:t", "--ip", "10.0.0.2", "--name", "server"]
    )

    def up() -> bool:
        shown = runner.command("net", "show", "t", "--json")
        return shown.status == 0 and "tcp/7" in json.loads(shown.stdout)[0]["ports"]

    assert wait_until(up)
    yield vm
    if vm.poll() is None:
        runner.command("kill", "server").ok()
        vm.wait(20)


def test_two_vms(runner: Runner, server: subprocess.Popen[bytes]) -> None:
    source = """
import socket
def ask(name, what=b""):
    with socket.create_connection((name, 7)) as sock:
        text = sock.recv(100).decode()
        sock.send(what or b"x")
        return text
for name in ("10.0.0.2", "server", "server.internal", "t1"):
    print(ask(name))
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
ask("server", b"udp")
for name in ("10.0.0.2", "224.1.2.3", "255.255.255.255"):
    udp.sendto(b"hi ", (name, 7))
    print(udp.recvfrom(100))
ask("server", b"end")
"""
    client = runner.umvm([*PYTHON, "-c", source], options=["--net", "fabric:t"])
    six = "fd75:6d76:6d00::a00:1 fd75:6d76:6d00::a00:2"
    lines = client.ok().splitlines()
    assert lines[0] == "10.0.0.1 10.0.0.2"
    assert all(line in (lines[0], six) for line in lines[:4])
    assert lines[4:] == ["(b'hi 10.0.0.1', ('10.0.0.2', 7))"] * 3
    assert server.wait(20) == 0


def test_the_commands(runner: Runner, server: subprocess.Popen[bytes]) -> None:
    assert json.loads(runner.command("net", "ls", "--json").ok()) == [
        {"name": "t", "hosts": 1, "vms": ["server"]}
    ]
    assert runner.command("net", "show", "nonesuch").status == 3
    taken = runner.umvm("true", options=["--net", "fabric:t", "--ip", "10.0.0.2"])
    assert (taken.status, taken.stderr.count("\n")) == (17, 1)
    forward = runner.command("net", "forward", "--vm", "server", "0:server:7").ok()
    port = int(forward.split(" ")[0].rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        assert sock.recv(100) == b"10.0.0.2 10.0.0.2"
    assert runner.command("net", "forward", "--vm", "server", "--delete", f"{port}").ok() == ""
    with socket.socket() as sock:
        assert sock.connect_ex(("127.0.0.1", port)) == 111
    assert runner.command("net", "dns", "add", "other", "10.0.0.2").ok() == ""
    get = "import socket; print(socket.create_connection(('other.internal', 7)).recv(99))"
    client = [*PYTHON, "-c", get]
    assert runner.umvm(client, options=["--net", "fabric:t"]).ok() == "b'10.0.0.1 10.0.0.2'\n"
    assert runner.command("net", "link", "server", "--down").ok() == ""
    lost = runner.umvm(client, options=["--net", "fabric:t"])
    assert lost.status == 1 and "No route to host" in lost.stderr
    assert runner.command("net", "link", "server", "--up").ok() == ""
    assert runner.umvm(client, options=["--net", "fabric:t"]).ok() == "b'10.0.0.1 10.0.0.2'\n"


def test_a_way_out(runner: Runner, server: subprocess.Popen[bytes]) -> None:
    """A port of the host `server` leads to a server on the real machine."""
    with socket.create_server(("127.0.0.1", 0)) as real:
        port = real.getsockname()[1]
        out = ("net", "forward", "--vm", "server", "--out")
        assert (
            runner.command(*out, f"5432:127.0.0.1:{port}").ok()
            == f"0.0.0.0:5432 -> 127.0.0.1:{port}\n"
        )
        source = """
import socket
with socket.create_connection(("10.0.0.2", 5432)) as sock:
    sock.sendall(b"question")
    print(sock.recv(100), sock.getpeername())
"""
        client = runner.start_umvm(
            [*PYTHON, "-c", source], options=["--net", "fabric:t"], stdout=subprocess.PIPE
        )
        one, _ = real.accept()
        with one:
            assert one.recv(100) == b"question"
            one.sendall(b"answer")
        assert client.communicate(timeout=20)[0] == b"b'answer' ('10.0.0.2', 5432)\n"
        assert runner.command(*out, "--delete", "0.0.0.0:5432").ok() == ""
        assert runner.command("net", "forward", "--vm", "server").ok() == ""


def test_a_killed_vm_leaves_nothing(runner: Runner, server: subprocess.Popen[bytes]) -> None:
    os.kill(server.pid, signal.SIGKILL)
    server.wait()
    assert wait_until(lambda: json.loads(runner.command("net", "ls", "--json").ok()) == [])
    again = runner.umvm("cat /etc/hosts", options=["--net", "fabric:t", "--ip", "10.0.0.2"]).ok()
    assert again.count("10.0.0.2") == 1


def test_two_hosts_in_one_vm(umvm_run: Run, tmp_path: Path) -> None:
    umvm = " ".join(UMVM)
    script = tmp_path / "echo.py"
    script.write_text(ECHO)
    python = " ".join(PYTHON)
    body = f"""
    {umvm} mount -t net -o ip=10.0.0.4 fabric:u /dev/net/a
    {umvm} mount -t net -o ip=10.0.0.5,name=b fabric:u /dev/net/b
    cat /dev/net/a
    {STACK} /dev/net/b {python} {script} &
    until {NET} show u | grep -q tcp/7; do sleep 0.1; done
    {STACK} /dev/net/a {python} -c '
import socket
one = socket.create_connection(("10.0.0.5", 7))
print(one.recv(100))'
    {umvm} umount /dev/net/b; echo $?
    {STACK} /dev/net/a {python} -c '
import socket
one = socket.create_connection(("10.0.0.5", 7))
one.send(b"end")'
    wait
    {umvm} umount /dev/net/b; echo $?
    """
    shown = umvm_run(body).stdout.splitlines()
    assert shown[0].startswith("fabric:u 10.0.0.4 ")
    assert shown[1:] == ["b'10.0.0.4 10.0.0.5'", "16", "0"]


def test_a_bad_link(runner: Runner, server: subprocess.Popen[bytes]) -> None:
    source = """
import socket, time
start = time.monotonic()
with socket.create_connection(("server", 7)) as sock:
    print(sock.getpeername()[1], sock.recv(100), sock.getsockname()[0] in ("10.0.0.1", "fd75:6d76:6d00::a00:1"))
    sock.send(b"udp")
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.settimeout(10)
    for _ in range(3):
        udp.sendto(b"hi ", ("10.0.0.2", 7))
        print(udp.recvfrom(100))
print(time.monotonic() - start > 0.4)
"""
    link = ("net", "link", "server")
    assert runner.command(*link).ok() == "up\n"
    assert runner.command(*link, "--latency", "60ms", "--rate", "80mbit").ok() == ""
    assert runner.command(*link).ok() == "up latency=0.06 rate=1e+07\n"
    lines = runner.umvm([*PYTHON, "-c", source], options=["--net", "fabric:t"]).ok().splitlines()
    assert lines[0].startswith("7 b'") and lines[0].endswith(" True")
    assert lines[1:] == ["(b'hi 10.0.0.1', ('10.0.0.2', 7))"] * 3 + ["True"]
    assert runner.command(*link, "--clear", "--drop", "100%").ok() == ""
    lost = """
import socket
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.settimeout(0.2)
udp.sendto(b"", ("10.0.0.2", 7))
try:
    udp.recv(1)
except TimeoutError:
    print("lost")
"""
    assert runner.umvm([*PYTHON, "-c", lost], options=["--net", "fabric:t"]).ok() == "lost\n"
    for wrong in ("--latency=20", "--rate=x", "--drop=200%", "--jitter=5%"):
        assert runner.command(*link, wrong).status == 2
