"""AF_UNIX sockets in views: private abstract names; long places; what peers learn of each other."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable
from pathlib import Path

from harness import PYTHON, Result, Runner
from hypothesis import given
from hypothesis import strategies as st

from umvm.guest.abstract import ROOM, AbstractNames

Run = Callable[..., Result]
PRIVATE = ["--net", "host,abstract=private"]


@given(st.binary(min_size=1, max_size=ROOM))
def test_names_come_back(name: bytes) -> None:
    names = AbstractNames()
    outside = names.outside(name)
    assert len(outside) <= ROOM and names.outside(outside) == outside
    assert names.inside(outside) == name


def names(tag: str) -> list[object]:
    """What programs do with abstract names."""
    import os
    import socket
    import struct

    stream, dgram = socket.SOCK_STREAM, socket.SOCK_DGRAM
    found: list[object] = []
    for name in (
        b"\0" + tag.encode(),
        b"\0" + tag.encode().ljust(107, b"x"),
        b"\0#" + tag.encode(),
    ):
        server = socket.socket(socket.AF_UNIX, stream)
        server.bind(name)
        server.listen()
        client = socket.socket(socket.AF_UNIX, stream)
        client.connect(name)
        accepted, _ = server.accept()
        pid, uid, gid = struct.unpack("=iii", accepted.getsockopt(1, 17, 12))
        found.append((pid, uid, gid) == (os.getpid(), os.geteuid(), os.getegid()))
        found += [server.getsockname() == name, client.getpeername() == name]
        one = socket.socket(socket.AF_UNIX, dgram)
        other = socket.socket(socket.AF_UNIX, dgram)
        one.bind(name[:-1] + b"1")
        other.bind(name[:-1] + b"2")
        one.sendto(b"a", name[:-1] + b"2")
        one.sendmsg([b"b"], [], 0, name[:-1] + b"2")
        other.recv(9)
        data, sender = other.recvfrom(9)
        other.sendto(b"answer", sender)
        found += [data, one.recv(9), other.getsockname() == name[:-1] + b"2"]
        for each in (server, client, accepted, one, other):
            each.close()
    auto = socket.socket(socket.AF_UNIX, dgram)
    auto.bind("")
    peer = socket.socket(socket.AF_UNIX, dgram)
    peer.sendto(b"to it", auto.getsockname())
    found += [len(auto.getsockname()), auto.recv(9)]
    try:
        peer.connect(b"\0" + tag.encode() + b"nobody")
    except OSError as error:
        found.append(error.errno)
    auto.close()
    peer.close()
    return found


def call(tag: str) -> list[str]:
    import inspect

    return [*PYTHON, "-c", f"{inspect.getsource(names)}\nprint(names({tag!r}))"]


def test_private_names_work_as_others_do(umvm_run: Run) -> None:
    tag = f"umvm-{secrets.token_hex(4)}-"
    expected = f"{names(tag)}\n"
    assert umvm_run(call(tag), options=PRIVATE).ok() == expected
    assert umvm_run(call(tag), options=["--net", "null,abstract=private"]).ok() == expected
    assert umvm_run(call(tag), options=["--net", "host"]).ok() == expected


def test_they_are_private(umvm_run: Run) -> None:
    name = f"\0umvm-{secrets.token_hex(4)}"
    source = f"""
import socket
s = socket.socket(socket.AF_UNIX)
try:
    s.connect({name!r})
    print("connected")
except OSError as error:
    print(error.strerror)
socket.socket(socket.AF_UNIX).bind({name!r})
"""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name)
        server.listen()
        private = umvm_run([*PYTHON, "-c", source], options=PRIVATE)
        assert (private.stdout, private.stderr) == ("Connection refused\n", "")
        shared = umvm_run([*PYTHON, "-c", source])
        assert shared.stdout == "connected\n" and "Address already in use" in shared.stderr


def test_the_option_is_checked(umvm_run: Run) -> None:
    result = umvm_run("echo never", options=["--net", "host,abstract=no"])
    assert (result.status, result.stdout, result.stderr.count("\n")) == (2, "", 1)


# --- paths ----------------------------------------------------------------------------------------

PATHS = """
import array, os, socket, struct, sys
os.chdir(sys.argv[1])
os.mkdir("d" * 200); os.chdir("d" * 200)
server = socket.socket(socket.AF_UNIX); server.bind("s"); server.listen()
client = socket.socket(socket.AF_UNIX); client.connect("./s")
accepted, _ = server.accept()
print(struct.unpack("=iii", accepted.getsockopt(1, 17, 12)) == (os.getpid(), os.geteuid(), os.getegid()))
print(struct.unpack("=iii", client.getsockopt(1, 17, 12))[0] == os.getpid())
print(server.getsockname(), client.getpeername())
with open("f", "w+") as file:
    file.write("content"); file.flush()
    socket.send_fds(client, [b"x"], [file.fileno(), os.open(".", os.O_RDONLY)])
_, fds, _, _ = socket.recv_fds(accepted, 9, 9)
print(os.pread(fds[0], 99, 0), os.fstat(fds[0]).st_ino == os.stat("f").st_ino)
print(sorted(os.listdir(fds[1])), os.stat("f", dir_fd=fds[1]).st_size)
d = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); d.bind("t")
e = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); e.setsockopt(1, 16, 1)
d.setsockopt(1, 16, 1)
e.sendto(b"hello", "t")
data, control, _, _ = d.recvmsg(99, 99)
print(data, [struct.unpack("=iii", c[2])[0] == os.getpid() for c in control])
for long in ("x" * 107, "x" * 108):
    try:
        socket.socket(socket.AF_UNIX).bind(long); print("bound")
    except OSError as error:
        print(error)
"""


def test_long_places_descriptors_and_credentials(
    runner: Runner, tmp_path: Path, umvm_run: Run
) -> None:
    """On a mount as on the host: names are short where the socket is, however long the path."""
    native, served = tmp_path / "native", tmp_path / ("m" * 100)
    native.mkdir()
    served.mkdir()
    expected = runner.run([*PYTHON, "-c", PATHS, str(native)])
    vm = runner.umvm([*PYTHON, "-c", PATHS, str(served)], mounts=[f"memory::{served}"])
    assert expected.ok().count("True") == 4
    assert vm.ok() == expected.stdout


def test_from_a_mount_to_a_long_place_of_the_host(runner: Runner, tmp_path: Path) -> None:
    """A relative name that leads out of the mount may stand for a path of any length."""
    long = tmp_path / ("h" * 120)
    served = long / "m"
    served.mkdir(parents=True)
    source = """
import os, socket, sys
os.chdir(sys.argv[1])
server = socket.socket(socket.AF_UNIX); server.bind("../s"); server.listen()
client = socket.socket(socket.AF_UNIX); client.connect("../s"); client.sendall(b"here")
print(server.accept()[0].recv(9), server.getsockname() == client.getpeername())
"""
    argv = [*PYTHON, "-c", source, str(served)]
    vm = runner.umvm(argv, mounts=[f"memory::{served}"])
    assert vm.ok() == "b'here' True\n"
    assert os.path.exists(long / "s")
