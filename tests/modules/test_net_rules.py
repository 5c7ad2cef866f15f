"""Rules on the host's network: the calls, names, real programs."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from harness import GUESTS, PYTHON, UMVM, Result, Runner

Run = Callable[..., Result]


# --- the calls -------------------------------------------------------------------------------------


def test_a_bad_rule_ends_with_2(umvm_run: Run) -> None:
    for net in ("allow=1.2.3", "nonsense=1", "map=80", "dns=x"):
        result = umvm_run("echo never", options=["--net", net])
        assert (result.status, result.stdout, result.stderr.count("\n")) == (2, "", 1)


@pytest.fixture
def echo() -> Iterator[int]:
    """A TCP listener and a UDP socket on one port of 127.0.0.1, which only receive."""
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with closing(socket.create_server(("127.0.0.1", 0))) as tcp, udp:
        udp.bind(tcp.getsockname())
        yield tcp.getsockname()[1]


def guest(source: str, **values: object) -> list[str]:
    head = "import errno, os, select, signal, socket, struct, sys, threading, time\n"
    head += "".join(f"{name} = {value!r}\n" for name, value in values.items())
    head += """
def t(name, call):
    try:
        print(name, call())
    except OSError as error:
        print(name, errno.errorcode[error.errno])
"""
    return [*PYTHON, "-c", head + source]


CALLS = """
v4, v6, dgram = socket.AF_INET, socket.AF_INET6, socket.SOCK_DGRAM
here, there = ("127.0.0.1", port), ("127.0.0.2", port)
t("allowed", lambda: socket.create_connection(here).getpeername() == here)
t("denied", lambda: socket.create_connection(there))
t("other port", lambda: socket.socket().connect(("127.0.0.1", 1)))
n = socket.socket(); n.setblocking(False)
t("nonblocking", lambda: n.connect(here))
n = socket.socket(); n.setblocking(False)
t("nonblocking denied", lambda: n.connect(there))
t("blocking still", lambda: socket.socket().getblocking())
u = socket.socket(v4, dgram)
t("udp", lambda: u.sendto(b"abc", here))
t("udp denied", lambda: u.sendto(b"abc", there))
t("sendmsg", lambda: u.sendmsg([b"abc", b"de"], [], 0, here))
t("sendmsg denied", lambda: u.sendmsg([b"abc"], [], 0, there))
t("udp connect denied", lambda: u.connect(there))
t("udp connect", lambda: u.connect(here))
t("udp send", lambda: u.send(b"abc"))
t("udp sendmsg", lambda: u.sendmsg([b"abc"]))
t("udp large", lambda: u.send(bytes(70000)))
s = socket.socket(v6)
t("mapped", lambda: s.connect(("::ffff:127.0.0.1", port)))
s = socket.socket(v6)
t("mapped denied", lambda: s.connect(("::ffff:127.0.0.2", port)))
s = socket.socket(v6)
t("v6 denied", lambda: s.connect(("::1", port)))
t("any denied", lambda: socket.socket().connect(("0.0.0.0", 1)))
t("any", lambda: socket.socket().connect(("0.0.0.0", port)))
t("raw", lambda: socket.socket(v4, socket.SOCK_RAW, 1).close())
t("packet", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close())
t("vsock", lambda: socket.socket(40, 1).close())
t("sctp", lambda: socket.socket(v4, 1, 132).close())
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def raw(call, *arguments):
    if call(*arguments) < 0:
        raise OSError(ctypes.get_errno(), "")
    return 0
u = socket.socket(v4, dgram)
unspec = lambda host: struct.pack("=H", 0) + struct.pack("!H4s8x", port, socket.inet_aton(host))
t("unspec", lambda: raw(libc.sendto, u.fileno(), b"x", 1, 0, unspec("127.0.0.2"), 16))
t("unspec allowed", lambda: raw(libc.sendto, u.fileno(), b"x", 1, 0, unspec("127.0.0.1"), 16))
t("fast open", lambda: socket.socket().sendto(b"x", socket.MSG_FASTOPEN, there))
c = socket.create_connection(here)
t("tcp sendto", lambda: c.sendto(b"x", there))
t("tcp sendmsg", lambda: c.sendmsg([b"x"], [], 0, there))
t("unix", lambda: [p.send(b"x") for p in socket.socketpair()])
t("no fd", lambda: raw(libc.connect, 999, unspec("1.2.3.4"), 16))
t("no socket", lambda: raw(libc.connect, os.open("/dev/null", 0), unspec("1.2.3.4"), 16))
t("too long", lambda: raw(libc.connect, c.fileno(), bytes(200), 200))
t("bad pointer", lambda: raw(libc.connect, c.fileno(), ctypes.c_void_p(8), 16))
"""
EXPECTED = """
allowed True
denied EACCES
other port EACCES
nonblocking EINPROGRESS
nonblocking denied EACCES
blocking still True
udp 3
udp denied EACCES
sendmsg 5
sendmsg denied EACCES
udp connect denied EACCES
udp connect None
udp send 3
udp sendmsg 3
udp large EMSGSIZE
mapped None
mapped denied EACCES
v6 denied EACCES
any denied EACCES
any None
raw EPERM
packet EPERM
vsock EAFNOSUPPORT
sctp EPROTONOSUPPORT
unspec EACCES
unspec allowed 0
fast open EOPNOTSUPP
tcp sendto 1
tcp sendmsg 1
unix [1, 1]
no fd EBADF
no socket ENOTSOCK
too long EINVAL
bad pointer EFAULT
"""


def test_what_calls_do(umvm_run: Run, echo: int, tmp_path: Path) -> None:
    log = tmp_path / "denied"
    net = ["--net", f"allow=127.0.0.1:{echo}", "--net-log", str(log)]
    shown = umvm_run(guest(CALLS, port=echo), options=net).ok().replace("ENOTSUP", "EOPNOTSUPP")
    assert shown == EXPECTED.lstrip()
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    first = {k: v for k, v in entries[0].items() if k not in ("time", "pid", "program")}
    assert first == {
        "direction": "connect", "protocol": "tcp", "address": "127.0.0.2",
        "port": echo, "names": [], "why": "no rule allows it",
    }  # fmt: skip
    assert len(entries) == EXPECTED.count("EACCES")


def test_what_is_allowed_is_as_on_the_host(runner: Runner, echo: int) -> None:
    """With a rule for everything, results are the kernel's."""
    native = runner.run(guest(CALLS, port=echo)).ok().splitlines()
    vm = runner.umvm(guest(CALLS, port=echo), options=["--net", "allow=*"]).ok().splitlines()
    different = set(native) ^ set(vm)
    assert {line.split(" ")[0] for line in different} <= {"raw", "packet", "vsock", "sctp", "fast"}


WAITING = """
server = socket.create_server(("127.0.0.1", 0), backlog=0)
full = []
while True:  # until the queue is full, and connect waits
    s = socket.socket(); s.setblocking(False)
    try:
        s.connect(server.getsockname())
    except BlockingIOError:
        pass
    full.append(s)
    if not select.select([], [s], [], 0.3)[1]:
        break
class Bell(Exception):
    pass
def ring(*_):
    raise Bell
signal.signal(signal.SIGALRM, ring)
signal.setitimer(signal.ITIMER_REAL, 0.5)
late = socket.socket()
try:
    late.connect(server.getsockname())
    print("connected")
except Bell:
    print("interrupted")
late = socket.socket()
def accept():
    time.sleep(0.3)
    for _ in full:
        server.accept()
threading.Thread(target=accept, daemon=True).start()
late.connect(server.getsockname())
print("connected", late.getblocking(), late.getsockopt(1, 21, 16) == bytes(16))
server, full = socket.create_server(("127.0.0.1", 0), backlog=0), []
while True:
    s = socket.socket(); s.setblocking(False)
    try:
        s.connect(server.getsockname())
    except BlockingIOError:
        pass
    full.append(s)
    if not select.select([], [s], [], 0.3)[1]:
        break
late = socket.socket()
late.setsockopt(1, 21, struct.pack("=qq", 0, 300000))
t("late", lambda: late.connect(server.getsockname()))
"""


def test_a_blocking_connect_waits_and_is_interrupted(runner: Runner) -> None:
    native = runner.run(guest(WAITING)).ok()
    vm = runner.umvm(guest(WAITING), options=["--net", "allow=127.0.0.1"]).ok()
    assert vm == native == "interrupted\nconnected True True\nlate EINPROGRESS\n"


HOSTILE = """
import ctypes
libc = ctypes.CDLL(None)
good, bad = (struct.pack("=H", 2) + struct.pack("!H4s8x", port, socket.inet_aton(f"127.0.0.{n}"))
             for n in (1, 2))
name = ctypes.create_string_buffer(good, 16)
data = ctypes.create_string_buffer(b"data")
part = (ctypes.c_uint64 * 2)(ctypes.addressof(data), 4)
head = (ctypes.c_uint64 * 8)(ctypes.addressof(name), 16, ctypes.addressof(part), 1, 0, 0, 0, 0)
stop = False
def change():
    while not stop:
        ctypes.memmove(name, bad, 16)
        head[0] = 0
        ctypes.memmove(name, good, 16)
        head[0] = ctypes.addressof(name)
threading.Thread(target=change, daemon=True).start()
done = 0
for _ in range(150):
    with socket.socket() as s:
        s.setblocking(False)
        libc.connect(s.fileno(), name, 16)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as u:
        done += libc.sendto(u.fileno(), data, 4, 0, name, 16) == 4
        done += libc.sendmsg(u.fileno(), head, 0) == 4
        done += libc.sendmmsg(u.fileno(), head, 1, 0) == 1
stop = True
print(done > 0)
"""


def test_an_address_that_changes_meanwhile(umvm_run: Run) -> None:
    """The address that is used is the one that was judged."""
    good, forbidden = socket.create_server(("127.0.0.1", 0)), socket.socket()
    port = good.getsockname()[1]
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with good, forbidden, datagrams:
        forbidden.bind(("127.0.0.2", port))
        forbidden.listen()
        datagrams.bind(("127.0.0.2", port))
        forbidden.setblocking(False)
        datagrams.setblocking(False)
        options = ["--net", f"allow=127.0.0.1:{port}"]
        assert umvm_run(guest(HOSTILE, port=port), options=options).ok() == "True\n"
        for attempt in (forbidden.accept, lambda: datagrams.recv(9)):
            with pytest.raises(BlockingIOError):
                attempt()


def test_ports_below_1024_by_a_map(umvm_run: Run) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    source = """
s = socket.create_server(("127.0.0.1", 80))
print(s.getsockname())
c = socket.create_connection(("127.0.0.1", 80))
print(c.getpeername(), s.accept()[0].getsockname())
t("denied", lambda: socket.socket().bind(("127.0.0.1", 81)))
"""
    net = f"allow=bind://127.0.0.1:80,connect://127.0.0.1:80,map=80:{port}"
    name = ("127.0.0.1", 80)
    shown = umvm_run(guest(source), options=["--net", net]).ok()
    assert shown == f"{name}\n{name} {name}\ndenied EACCES\n"


def test_the_log_command_and_the_stacks_file(umvm_run: Run) -> None:
    umvm = " ".join(UMVM)
    body = f"""
    {" ".join(PYTHON)} -c 'import socket; socket.socket().connect_ex(("127.0.0.9", 9))'
    {umvm} net log | sed 's/^[^ ]* [^ ]* //'; {umvm} net log --json
    {umvm} mount -t net 'host,deny=*' /dev/net/h; echo $?
    """
    shown = umvm_run(body, options=["--net", "deny=127.0.0.0/8"])
    first, second, third = shown.stdout.splitlines()
    assert first == "connect tcp 127.0.0.9:9: deny 127.0.0.0/8"
    assert json.loads(second)["why"] == "deny 127.0.0.0/8" and third == "2"


# --- names ----------------------------------------------------------------------------------------


@pytest.fixture
def dns(runner: Runner) -> Iterator[Callable[..., int]]:
    """`dns("a.test=127.0.0.1", …)` starts a nameserver; its port."""
    started = []

    def start(*zone: str) -> int:
        argv = [*PYTHON, str(GUESTS / "dns_server.py"), *zone]
        server = runner.start(argv, stdout=subprocess.PIPE)
        started.append(server)
        assert server.stdout is not None
        return int(server.stdout.readline())

    yield start
    for server in started:
        server.kill()
        server.wait()
        if server.stdout is not None:
            server.stdout.close()


def test_a_pattern_holds_for_the_addresses_that_names_had(
    umvm_run: Run, echo: int, dns: Callable[..., int]
) -> None:
    """The resolver changes its answer; what was never an answer stays closed."""
    server = dns(
        "a.good.test=127.0.0.1,127.0.0.3", "b.good.test=>a.good.test", "evil.test=127.0.0.2"
    )
    source = """
def look(name):
    return sorted({a[4][0] for a in socket.getaddrinfo(name, 1, socket.AF_INET)})
t("before", lambda: socket.create_connection(("127.0.0.1", port)).close())
t("good", lambda: look("a.good.test"))
t("connect", lambda: socket.create_connection(("127.0.0.1", port)).close())
t("evil", lambda: look("evil.test"))
t("denied", lambda: socket.create_connection(("127.0.0.2", port)))
t("again", lambda: look("a.good.test"))
t("old", lambda: socket.create_connection(("127.0.0.1", port)).close())
t("new", lambda: socket.create_connection(("127.0.0.3", port)))
t("alias", lambda: look("b.good.test"))
t("none", lambda: socket.create_connection(("127.0.0.4", port)))
"""
    options = ["--net", f"allow=*.good.test:{echo},dns=127.0.0.1:{server}"]
    shown = umvm_run(guest(source, port=echo), options=options).ok()
    assert shown.splitlines() == [
        "before EACCES", "good ['127.0.0.1']", "connect None", "evil ['127.0.0.2']",
        "denied EACCES", "again ['127.0.0.3']", "old None", "new ECONNREFUSED",
        "alias ['127.0.0.3']", "none EACCES",
    ]  # fmt: skip


def test_a_name_is_looked_up_by_the_supervisor(
    umvm_run: Run, echo: int, dns: Callable[..., int]
) -> None:
    server = dns("one.test=127.0.0.1")
    source = 't("it", lambda: socket.create_connection(("127.0.0.1", port)).close())\n'
    source += 't("other", lambda: socket.create_connection(("127.0.0.2", port)))\n'
    options = ["--net", f"allow=one.test:{echo},dns=127.0.0.1:{server}"]
    assert umvm_run(guest(source, port=echo), options=options).ok() == "it None\nother EACCES\n"
    options = ["--net", f"deny=one.test,dns=127.0.0.1:{server}"]
    shown = umvm_run(guest(source, port=echo), options=options).ok()
    assert shown == "it EACCES\nother ECONNREFUSED\n"
    options = ["--net", f"allow=localhost:{echo}"]  # the host's /etc/hosts
    assert umvm_run(guest(source, port=echo), options=options).ok() == "it None\nother EACCES\n"


def test_resolvers_that_check_who_answers(
    umvm_run: Run, echo: int, dns: Callable[..., int]
) -> None:
    """Unconnected UDP sockets (musl, c-ares) see answers come from the nameserver they asked."""
    server = dns("a.good.test=127.0.0.1")
    source = """
import re
text = open("/etc/resolv.conf").read() if os.path.exists("/etc/resolv.conf") else ""
place = (re.findall(r"^nameserver ([0-9.]+)$", text, re.M) or ["127.0.0.1"])[0], 53
query = b"\\x12\\x34\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0\\1a\\4good\\4test\\0\\0\\1\\0\\1"
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
u.settimeout(10)
u.sendto(query, place)
data, sender = u.recvfrom(512)
print(sender == place, data[-4:])
u.sendmsg([query], [], 0, place)
data, _, flags, sender = u.recvmsg(20)
print(sender == place, flags == socket.MSG_TRUNC, len(data))
other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
other.bind(("127.0.0.1", 0))
other.sendto(b"else", ("127.0.0.1", u.getsockname()[1]))
print(u.recvfrom(9)[1] == other.getsockname())
t("then", lambda: socket.create_connection(("127.0.0.1", port)).close())
"""
    allow = f"*.good.test:{echo},udp://127.0.0.1"
    options = ["--net", f"allow={allow},dns=127.0.0.1:{server}"]
    shown = umvm_run(guest(source, port=echo), options=options).ok()
    assert shown == "True b'\\x7f\\x00\\x00\\x01'\nTrue True 20\nTrue\nthen None\n"
    if shutil.which("node"):
        script = "require('dns').resolve4('a.good.test', (e, a) => console.log(e || a[0]))"
        assert umvm_run(["node", "-e", script], options=options).ok() == "127.0.0.1\n"


def test_curl(runner: Runner, dns: Callable[..., int], tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    (tmp_path / "file").write_text("fetched\n")
    source = """
import functools, http.server, sys
handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=sys.argv[1])
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
print(server.server_address[1], flush=True)
server.serve_forever()
"""
    web = runner.start([*PYTHON, "-c", source, str(tmp_path)], stdout=subprocess.PIPE,
                       stderr=subprocess.DEVNULL)  # fmt: skip
    assert web.stdout is not None
    port = int(web.stdout.readline())
    server = dns("www.good.test=127.0.0.1", "www.bad.test=127.0.0.1")
    curl = "curl -sS --noproxy '*' --max-time 20"
    body = (
        f"{curl} http://www.bad.test:{port}/file; echo $?; {curl} http://www.good.test:{port}/file"
    )
    options = ["--net", f"allow=*.good.test:{port},dns=127.0.0.1:{server}"]
    result = runner.umvm(body, options=options)
    web.kill()
    web.wait()
    web.stdout.close()
    assert result.stdout == "7\nfetched\n", result.stderr


@pytest.mark.parametrize(
    ("net", "families"),
    [
        ("allow=127.0.0.0/8,bind://127.0.0.1,map=80:20080,abstract=private", ["inet", "unix"]),
        ("fabric", ["inet", "unix", "netlink"]),
    ],
)
def test_nonsense_as_addresses(runner: Runner, net: str, families: list[str]) -> None:
    """The supervisor survives and logs nothing (a fixture looks), and the guest gets errors."""
    argv = [*PYTHON, str(GUESTS / "sockaddr_fuzz.py")]
    body = "; ".join(" ".join([*argv, str(seed), *families]) for seed in (1, 2, 3))
    shown = runner.umvm(body, options=["--net", net]).ok().splitlines()
    assert len(shown) == 3
    for line in shown:
        count, *errors = line.split()
        assert count == "450" and {"EINVAL", "EFAULT"} <= set(errors)
        assert not {"EIO", "ENOSYS"} & set(errors)
