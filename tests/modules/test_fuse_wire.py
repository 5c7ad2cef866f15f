"""The protocol to a guest that serves a file system, and what a broken guest can do: nothing."""

from __future__ import annotations

import ast
import errno
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from umvm import standin
from umvm.interfaces.filesystem import Attr, Caller, Entry, StatFs, set_caller
from umvm.standin import wire
from umvm.standin.remote import RemoteOperations

PACKAGE = Path(standin.__file__).parent.parent
FOR_GUESTS = [
    *(PACKAGE / "interfaces").glob("f*.py"),
    *(path for path in (PACKAGE / "standin").rglob("*.py") if path.name != "remote.py"),
]
VALUES: dict[str, Any] = {
    "p": b"\0\xff",
    "h": 1 << 63,
    "q": -1,
    "?": True,
    "d": 1.5,
    "t": None,
    "A": Attr(0o100644, 1, 2, 3, 4, 5, 6, 7, -8, 9, 10, 11, -1),
    "S": StatFs(1, 2, 3, 4, 5, 6, 7, 8),
    "L": [b"", b"name"],
    "E": [Entry(b"a", 1, 0o100000), Entry(b"b")],
}


def test_values_of_every_kind_arrive() -> None:
    letters = "".join(VALUES)
    assert wire.unpack(letters, wire.pack(letters, list(VALUES.values()))) == list(VALUES.values())
    assert {letter for row in wire.OPERATIONS.values() for part in row for letter in part} == (
        set(VALUES)
    )


@pytest.mark.parametrize("letter", VALUES)
def test_messages_that_are_cut_off_or_too_long_are_refused(letter: str) -> None:
    data = wire.pack(letter, [VALUES[letter]])
    for wrong in (data[:-1], data + b"x", b""):
        with pytest.raises(wire.WireError):
            wire.unpack(letter, wrong)


@given(st.binary(max_size=64), st.sampled_from(sorted(VALUES)))
def test_garbage_is_refused_or_read_but_nothing_else(data: bytes, letter: str) -> None:
    try:
        values = wire.unpack(letter, data)
    except wire.WireError:
        return
    assert len(values) == 1


def test_a_long_result_is_cut_into_parts() -> None:
    parts = wire.answers(7, 0, b"x" * (wire.CHUNK + 1))
    assert [wire.ANSWER.unpack_from(part) for part in parts] == [(7, 0, 1), (7, 0, 0)]
    assert all(len(part) <= wire.MESSAGE for part in parts)


# --- a peer of our own ------------------------------------------------------------------------

Answer = Callable[[int, int, bytes], "list[bytes]"]


@pytest.fixture
def peer() -> Iterator[Callable[[Answer], RemoteOperations]]:
    """`peer(answer)`: a RemoteOperations whose peer sends `answer(ident, operation, arguments)`."""
    threads: list[threading.Thread] = []
    systems: list[RemoteOperations] = []

    def start(answer: Answer) -> RemoteOperations:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

        def serve() -> None:
            with theirs:
                while message := theirs.recv(wire.MESSAGE):
                    ident, number, *_ = wire.REQUEST.unpack_from(message)
                    for data in answer(ident, number, message[wire.REQUEST.size :]):
                        if not data:
                            return
                        theirs.send(data)

        threads.append(threading.Thread(target=serve))
        threads[-1].start()
        systems.append(RemoteOperations(ours))
        return systems[-1]

    yield start
    for fs in systems:
        fs.destroy()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


Peer = Callable[[Answer], RemoteOperations]


def number_of(call: Callable[[], Any]) -> int | None:
    with pytest.raises(OSError) as caught:
        call()
    return caught.value.errno


def test_a_request_carries_operation_caller_and_arguments(peer: Peer) -> None:
    seen: list[Any] = []

    def answer(ident: int, number: int, data: bytes) -> list[bytes]:
        seen.append((wire.NAMES[number], wire.unpack(wire.OPERATIONS["rename"][0], data)))
        return wire.answers(ident, errno.EXDEV)

    fs = peer(answer)
    assert number_of(lambda: fs.rename(b"/a", b"/b", 1)) == errno.EXDEV
    assert seen == [("rename", [b"/a", b"/b", 1])]


def test_the_caller_is_told(peer: Peer) -> None:
    callers: list[tuple[int, ...]] = []
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def serve() -> None:
        message = theirs.recv(wire.MESSAGE)
        callers.append(wire.REQUEST.unpack_from(message)[2:])
        theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    fs = RemoteOperations(ours)
    set_caller(Caller(1, 2, 3))
    try:
        assert number_of(lambda: fs.unlink(b"/a")) == errno.ECONNABORTED, "it hung up meanwhile"
    finally:
        set_caller(Caller(0, 0, 0))
    thread.join(10)
    assert callers == [(1, 2, 3)]
    assert number_of(lambda: fs.unlink(b"/a")) == errno.ENOTCONN
    fs.destroy()


def test_large_files_and_directories_travel_in_parts(peer: Peer) -> None:
    content = os.urandom(3 * wire.CHUNK // 2)
    entries = [Entry(b"%020d" % number, number, 0o100000) for number in range(20_000)]

    def answer(ident: int, number: int, data: bytes) -> list[bytes]:
        name = wire.NAMES[number]
        letters, wanted = wire.OPERATIONS[name]
        args = wire.unpack(letters, data)
        result: Any = entries
        if name == "read":
            result = content[args[3] : args[3] + args[2]]
        elif name == "write":
            result = len(args[2])
        return wire.answers(ident, 0, wire.pack(wanted, [result]))

    fs = peer(answer)
    assert fs.read(b"/a", 1, 1 << 20, 0) == content
    assert fs.write(b"/a", 1, content, 0) == len(content)
    assert list(fs.readdir(b"/", 1)) == entries


def test_answers_reach_the_thread_that_asked(peer: Peer) -> None:
    """The peer collects four requests and answers them in the opposite order."""
    waiting: list[tuple[int, bytes]] = []

    def answer(ident: int, number: int, data: bytes) -> list[bytes]:
        path = wire.unpack("p", data)[0]
        waiting.append((ident, path))
        if len(waiting) < 4:
            return []
        reversed_, waiting[:] = list(reversed(waiting)), []
        return [part for i, p in reversed_ for part in wire.answers(i, 0, wire.pack("p", [p]))]

    fs = peer(answer)
    results: dict[bytes, list[bytes]] = {}

    def ask(path: bytes) -> None:
        results[path] = [fs.readlink(path) for _ in range(50)]

    threads = [threading.Thread(target=ask, args=(b"/%d" % i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results == {b"/%d" % i: [b"/%d" % i] * 50 for i in range(4)}


BROKEN: list[tuple[str, Answer]] = [
    ("no answer at all", lambda ident, number, data: [b""]),
    ("a short head", lambda ident, number, data: [b"xy"]),
    ("no result", lambda ident, number, data: wire.answers(ident, 0)),
    ("a result of another kind", lambda ident, number, data: wire.answers(ident, 0, b"x" * 99)),
    ("a strange errno", lambda ident, number, data: wire.answers(ident, -5)),
    ("a huge errno", lambda ident, number, data: wire.answers(ident, 1 << 30)),
]


@pytest.mark.parametrize(("what", "answer"), BROKEN, ids=[row[0] for row in BROKEN])
def test_a_broken_peer_gives_errors(peer: Peer, what: str, answer: Answer) -> None:
    fs = peer(answer)
    allowed = (errno.EIO, errno.ECONNABORTED, errno.ENOTCONN)
    assert number_of(lambda: fs.getattr(b"/a")) in allowed
    assert number_of(lambda: fs.getattr(b"/a")) in allowed


def test_an_answer_nobody_waits_for_is_dropped(peer: Peer) -> None:
    fs = peer(
        lambda ident, number, data: [
            *wire.answers(ident + 1000, 0, b"late"),
            *wire.answers(ident, 0, wire.pack("p", [b"target"])),
        ]
    )
    assert fs.readlink(b"/l") == b"target"


def test_reads_and_writes_of_impossible_length_are_errors(peer: Peer) -> None:
    def answer(ident: int, number: int, data: bytes) -> list[bytes]:
        _, wanted = wire.OPERATIONS[wire.NAMES[number]]
        return wire.answers(ident, 0, wire.pack(wanted, [b"xx" if wanted == "p" else 99]))

    assert number_of(lambda: peer(answer).read(b"/a", 1, 1, 0)) == errno.EIO
    assert number_of(lambda: peer(answer).write(b"/a", 1, b"x", 0)) == errno.EIO


# --- what guests load -------------------------------------------------------------------------


def test_what_guests_load_is_python_3_8_with_the_standard_library() -> None:
    assert len(FOR_GUESTS) > 12
    for path in FOR_GUESTS:
        tree = ast.parse(path.read_text(), str(path), feature_version=(3, 8))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            known = {*sys.stdlib_module_names, "_umvm_standin"}
            assert {name.partition(".")[0] for name in names} <= known, path


def import_in_guest(code: str, socket_path: str | None) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], **standin.environment({})}
    if socket_path is not None:
        environment["UMVM_SOCKET"] = socket_path
    command = [sys.executable, "-S", "-W", "error", "-c", code]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=30
    )


@pytest.mark.parametrize("name", ["fuse", "fusepy", "mfusepy"])
def test_programs_in_a_vm_get_the_stand_in_without_umvm_installed(name: str) -> None:
    code = f"import {name} as f, sys; print(f.FUSE.__module__, 'umvm' in sys.modules, f.__name__)"
    done = import_in_guest(code, "/nowhere")
    module, umvm_there, called = done.stdout.split()
    assert module.startswith("_umvm_guest."), done.stderr
    assert (umvm_there, called) == ("False", name)


def test_outside_a_vm_the_stand_in_gives_way(tmp_path: Path) -> None:
    code = "import sys; sys.path.append(sys.argv[1]); import fuse; print(fuse.real, fuse.__file__)"
    done = import_in_guest(code.replace("sys.argv[1]", repr(str(tmp_path))), None)
    assert "ModuleNotFoundError" in done.stderr
    (tmp_path / "fuse.py").write_text("real = 'yes'\n")
    done = import_in_guest(code.replace("sys.argv[1]", repr(str(tmp_path))), None)
    assert done.stdout.split() == ["yes", str(tmp_path / "fuse.py")], done.stderr


def test_a_vm_that_is_not_there_is_a_failed_mount(tmp_path: Path) -> None:
    code = (
        "import fuse; ops = fuse.Operations(); ops.use_ns = True\n"
        f"try: fuse.FUSE(ops, {str(tmp_path)!r}, foreground=True)\n"
        "except RuntimeError as error: print(error)"
    )
    done = import_in_guest(code, str(tmp_path / "none.sock"))
    assert done.stdout == "1\n"
    assert done.stderr.startswith("fuse: ")


def test_the_path_of_guests_keeps_what_was_there() -> None:
    ours = standin.directory()
    assert standin.environment({}) == {"PYTHONPATH": ours}
    again = standin.environment({"PYTHONPATH": f"/a:{ours}:/b"})
    assert again == {"PYTHONPATH": f"{ours}:/a:/b"}
