"""The control socket, with real sockets and a stand-in for the VM's verbs."""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from umvm.control import client, protocol
from umvm.control.server import Server
from umvm.control.verbs import dispatch
from umvm.errors import Busy, Denied, Exists, NotFound, RemoteError, UmvmError, UsageError


def answer(verb: str, args: dict[str, Any], fds: list[int]) -> object:
    """A dispatcher with one verb for each thing that can happen."""
    match verb:
        case "echo":
            return args
        case "busy":
            raise Busy("it is in use")
        case "missing":
            raise FileNotFoundError(2, "No such file or directory", "/x")
        case "bug":
            raise ZeroDivisionError("no")
        case "count":
            return len(fds)
        case "slow":
            time.sleep(float(args["seconds"]))
            return "done"
    raise UsageError(f"unknown verb {verb!r}")


@pytest.fixture(autouse=True)
def private_runtime(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    monkeypatch.delenv(client.ENV, raising=False)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(protocol.socket_path("one"), answer) as server:
        yield server


def raw(server: Server, data: bytes) -> bytes:
    """Send bytes, end the sending side and read all that comes back."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(20)
        sock.connect(str(server.path))
        try:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            parts = []
            while part := sock.recv(65536):
                parts.append(part)
        except (BrokenPipeError, ConnectionResetError):
            return b""
        return b"".join(parts)


def message(value: object) -> bytes:
    body = json.dumps(value).encode()
    return struct.pack(">I", len(body)) + body


def test_call(server: Server) -> None:
    odd = os.fsdecode(b"/a\xff\n\xc3\xa9")
    assert client.call(server.path, "echo", {"path": odd, "n": 1}) == {"path": odd, "n": 1}


def test_socket_is_private(server: Server) -> None:
    assert server.path.stat().st_mode & 0o777 == 0o600
    assert server.path.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("verb", "code", "text"),
    [("busy", 16, "it is in use"), ("missing", 3, "/x: No such file"), ("none", 2, "unknown verb")],
)
def test_errors_come_with_their_code(server: Server, verb: str, code: int, text: str) -> None:
    with pytest.raises(RemoteError, match=text) as caught:
        client.call(server.path, verb)
    assert caught.value.exit_code == code


def test_a_bug_is_logged_and_survived(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(RemoteError, match="ZeroDivisionError"):
        client.call(server.path, "bug")
    assert "verb bug failed" in caplog.text
    assert client.call(server.path, "echo", {}) == {}


def test_several_requests_in_one_connection(server: Server) -> None:
    data = raw(server, message({"v": 1, "verb": "echo", "args": {"n": 1}}) * 3)
    assert data == message({"ok": True, "result": {"n": 1}}) * 3


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"\xff\xff\xff\xff" + b"x" * 100,
        struct.pack(">I", protocol.MAX_MESSAGE + 1),
        struct.pack(">I", 10) + b"{}",
        struct.pack(">I", 4) + b"\xff\xfe{}",
        struct.pack(">I", 0),
        message([1, 2]),
        message("x"),
        b"GET / HTTP/1.0\r\n\r\n",
    ],
)
def test_garbage_ends_the_connection_only(server: Server, data: bytes) -> None:
    assert raw(server, data) == b""
    assert client.call(server.path, "echo", {}) == {}


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        ({"v": 2, "verb": "echo", "args": {}}, "protocol 1 only"),
        ({"verb": "echo"}, "protocol 1 only"),
        ({"v": 1, "verb": 3, "args": {}}, "malformed"),
        ({"v": 1, "verb": "echo", "args": []}, "malformed"),
        ({"v": 1, "args": {}}, "malformed"),
    ],
)
def test_bad_requests_are_answered(server: Server, request_: object, text: str) -> None:
    data = raw(server, message(request_))
    assert text in json.loads(data[4:])["error"]


def test_deep_nesting_is_an_error_not_a_crash(server: Server) -> None:
    body = b"[" * 100_000
    raw(server, struct.pack(">I", len(body)) + body)
    assert client.call(server.path, "echo", {}) == {}


def test_descriptors_are_passed_and_closed(server: Server) -> None:
    read, write = os.pipe()
    try:
        assert client.call(server.path, "count", {}, [write, write]) == 2
        os.close(write)
        assert os.read(read, 1) == b""  # the server kept no copy
    finally:
        os.close(read)


def test_a_slow_verb_holds_nobody_up(server: Server) -> None:
    done: list[object] = []
    thread = threading.Thread(
        target=lambda: done.append(client.call(server.path, "slow", {"seconds": 0.5}))
    )
    thread.start()
    assert client.call(server.path, "echo", {}) == {}
    assert done == []
    thread.join()
    assert done == ["done"]


def test_other_users_are_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only root could connect as somebody else; here the server takes us for another user."""
    stranger = protocol.Peer(1, os.geteuid() + 1, 0)
    monkeypatch.setattr(protocol, "peer_of", lambda sock: stranger)
    with pytest.raises(UmvmError) as caught:
        client.call(server.path, "echo")
    assert "not your VM" in str(caught.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_another_user_is_refused_by_the_kernel(server: Server) -> None:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setgid(65534)
            os.setuid(65534)
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                sock.connect(str(server.path))
        except PermissionError:
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_name_is_taken(server: Server) -> None:
    with pytest.raises(Exists, match="'one' is running"):
        Server(server.path, answer)
    assert client.call(server.path, "echo", {}) == {}


def test_dead_socket_is_replaced() -> None:
    path = protocol.socket_path("dead")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(str(path))
    with Server(path, answer):
        assert client.call(path, "echo", {}) == {}
    assert not path.exists()


def test_only_one_of_many_gets_a_name() -> None:
    path = protocol.socket_path("race")
    servers: list[Server] = []
    refused: list[Exists] = []
    barrier = threading.Barrier(8)

    def start() -> None:
        barrier.wait()
        try:
            servers.append(Server(path, answer))
        except Exists as error:
            refused.append(error)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    try:
        assert (len(servers), len(refused)) == (1, 7)
        assert client.call(path, "echo", {}) == {}
    finally:
        for server in servers:
            server.close()


def test_close_removes_its_own_socket_only(server: Server) -> None:
    server.path.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(str(server.path))
        server.close()
        assert server.path.exists()
    server.path.unlink()


def test_list_and_find(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = protocol.socket_path("dead")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(str(dead))
    assert client.list_vms() == [client.Vm("one", server.path, os.getpid())]
    assert not dead.exists()
    for wanted in (None, "one", os.getpid(), str(os.getpid())):
        assert client.find_vm(wanted) == server.path
    with pytest.raises(NotFound, match=r"no VM named two \(running: one\)"):
        client.find_vm("two")
    with Server(protocol.socket_path("two"), answer) as second:
        with pytest.raises(NotFound, match="several VMs"):
            client.find_vm(None)
        assert client.find_vm("two") == second.path
        monkeypatch.setenv(client.ENV, str(server.path))
        assert client.find_vm(None) == server.path


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no VM is running"):
        client.find_vm(None)
    with pytest.raises(NotFound, match="no VM listens"):
        client.call(tmp_path / "none.sock", "echo")


def test_directory_that_others_may_enter_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "umvm").mkdir()
    (tmp_path / "umvm").chmod(0o755)
    with pytest.raises(Denied, match="0700"):
        protocol.socket_dir()
    (tmp_path / "umvm").rmdir()
    (tmp_path / "umvm").symlink_to("/tmp")
    with pytest.raises(Denied, match="0700"):
        protocol.socket_dir()


def test_too_long_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("d" * 80)
    deep.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    with pytest.raises(UmvmError, match="too long"):
        protocol.socket_path("n" * 60)


class Recorder:
    """A VM that notes what it is asked."""

    name = "rec"

    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []
        self.manager = self

    def verb(self, name: str) -> None:
        """No module answers a verb of its own."""

    def load(self, *args: object, **more: object) -> None:
        self.asked.append(("load", *args))

    def mount(self, *args: object) -> None:
        self.asked.append(("mount", *args))

    def umount(self, *args: object) -> None:
        self.asked.append(("umount", *args))

    def mounts(self) -> list[dict[str, object]]:
        return [{"target": b"/m\xff", "source": "none"}]


def test_verbs_take_arguments_apart() -> None:
    vm = Recorder()
    ask = dispatch(vm)
    arguments = {"type": "memory", "source": "none", "target": "mnt", "cwd": "/home"}
    assert ask("mount", {**arguments, "options": {"a": 1}}, []) is None
    assert ask("umount", {"target": os.fsdecode(b"/\xff")}, []) is None
    assert vm.asked == [
        ("mount", "memory", "none", b"/home/mnt", {"a": "1"}),
        ("umount", b"/\xff", False, False),
    ]
    assert ask("mounts", {}, []) == [{"target": os.fsdecode(b"/m\xff"), "source": "none"}]


@pytest.mark.parametrize(
    ("verb", "args"),
    [
        ("mount", {}),
        ("mount", {"type": 3, "source": "", "target": "/"}),
        ("umount", {"target": ["/"]}),
        ("umount", {"target": "x", "cwd": 7}),
        ("umount", {"target": "/a\0b"}),
        ("umount", {"target": "/\ud800"}),
        ("insmod", {"spec": None}),
        ("nothing", {}),
    ],
)
def test_verbs_check_arguments(verb: str, args: dict[str, Any]) -> None:
    vm = Recorder()
    with pytest.raises(UsageError):
        dispatch(vm)(verb, args, [])
    assert vm.asked == []
