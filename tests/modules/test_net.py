"""The module net: the stacks host and null, for all guests and for some."""

from __future__ import annotations

import errno
import inspect
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import PYTHON, UMVM, Result, Runner, wait_until
from umvm.modules.net.host import make as host_stack
from umvm.modules.net.null import make as null_stack

Run = Callable[..., Result]
STACK = " ".join([*UMVM, "stack"])
NOT_BUILT_IN = 12  # AF_DECnet: no kernel has it since Linux 6.1
NULL = "net,default=null"
NO_CALL: Any = None


def families() -> list[tuple[str, str]]:
    """What socket(2) says for each family."""
    import errno
    import socket

    found = []
    for name in ("AF_INET", "AF_INET6", "AF_NETLINK", "AF_PACKET", "AF_UNIX", "AF_ALG"):
        family = getattr(socket, name)
        try:
            kind = socket.SOCK_SEQPACKET if name == "AF_ALG" else socket.SOCK_DGRAM
            socket.socket(family, kind).close()
            found.append((name, "ok"))
        except OSError as error:
            found.append((name, errno.errorcode[error.errno or 0]))
    return found


def test_null_has_unix_sockets_only(umvm_run: Run) -> None:
    others = ("AF_INET", "AF_INET6", "AF_NETLINK", "AF_PACKET")
    expected = [(name, "EAFNOSUPPORT") for name in others]
    expected += [("AF_UNIX", "ok"), ("AF_ALG", "EAFNOSUPPORT")]
    assert umvm_run(families, modules=[NULL]).ok() == f"result {expected}\n"


@pytest.mark.parametrize("module", ["net", "net,default=host"])
def test_host_is_the_hosts(umvm_run: Run, module: str) -> None:
    assert umvm_run(families, modules=[module]).ok() == f"result {families()}\n"


def raw_sockets(family: int) -> list[int]:
    """What socket(2) and socketpair(2) answer for all sorts of types."""
    import ctypes
    import os

    libc = ctypes.CDLL(None, use_errno=True)
    pair = (ctypes.c_int * 2)()
    found = []
    for kind in [*range(-1, 17), 0o4000 | 2, 0o2004001, 0o10001, 0x100, 1 << 31]:
        for protocol in (0, 17, -1, 300):
            for call in (libc.socket, libc.socketpair):
                ctypes.set_errno(0)
                more = (pair,) if call is libc.socketpair else ()
                fd = call(ctypes.c_int(family), ctypes.c_int(kind), protocol, *more)
                found.append(ctypes.get_errno())
                if fd >= 0 and not more:
                    os.close(fd)
    return found


def test_null_is_a_kernel_without_the_family(umvm_run: Run) -> None:
    """The host is the oracle, with a family that it really lacks."""
    if raw_sockets(NOT_BUILT_IN)[0] == 0:
        pytest.skip("the kernel has DECnet")
    source = inspect.getsource(raw_sockets)
    for family in (socket.AF_INET, socket.AF_INET6, NOT_BUILT_IN, 200, -1):
        text = f"{source}\nprint(raw_sockets({family}))"
        vm = umvm_run([*PYTHON, "-c", text], modules=[NULL])
        expected = raw_sockets(
            NOT_BUILT_IN if family in (socket.AF_INET, socket.AF_INET6) else family
        )
        assert vm.ok() == f"{expected}\n"


@pytest.mark.parametrize(
    ("family", "kind", "number"),
    [
        (socket.AF_INET, socket.SOCK_STREAM, errno.EAFNOSUPPORT),
        (socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC, errno.EAFNOSUPPORT),
        (socket.AF_INET, 11, errno.EINVAL),
        (socket.AF_INET, 0x100, errno.EINVAL),
        (-1, 11, errno.EAFNOSUPPORT),
    ],
)
def test_the_null_stack(family: int, kind: int, number: int) -> None:
    with pytest.raises(OSError) as caught:
        null_stack(None, "", {}).socket(NO_CALL, family, kind, 0)
    assert caught.value.errno == number


def test_what_stacks_let_the_kernel_do() -> None:
    """They raise nothing."""
    null, host = null_stack(None, "", {}), host_stack(None, "", {})
    assert null.socket(NO_CALL, socket.AF_UNIX, socket.SOCK_STREAM, 0) is None
    assert null.socket(NO_CALL, socket.AF_UNIX, 11, 0) is None
    assert host.socket(NO_CALL, socket.AF_INET, 11, 0) is None


# --- choosing -------------------------------------------------------------------------------------


TRY = 'python3 -c "import socket; socket.socket().close()" 2>/dev/null && echo yes || echo no'


def test_the_stack_of_the_vm_changes_while_it_runs(umvm_run: Run) -> None:
    body = f"{STACK}; {TRY}; {STACK} null; {TRY}; {STACK}; {STACK} host; {TRY}"
    expected = "host (default)\nnull\nyes\nno\nhost\nnull (default)\nyes\n"
    assert umvm_run(body).ok() == expected  # and the module was loaded by the command


def test_the_stack_of_a_command_and_its_children(umvm_run: Run) -> None:
    body = f"""
    {STACK} null sh -c '{TRY}'; {TRY}
    {STACK} null; {TRY}; {STACK} host sh -c '{TRY}; ({TRY})' ; {TRY}
    {STACK} host {STACK} null sh -c '{TRY}'
    """
    assert umvm_run(body, modules=["net"]).ok().split() == [
        "no",
        "yes",
        "no",
        "yes",
        "yes",
        "no",
        "no",
    ]


def test_status_and_errors_of_the_command(umvm_run: Run) -> None:
    body = f"""
    {STACK} null sh -c 'exit 7'; echo $?
    {STACK} null no-such-program; echo $?
    {STACK} nonesuch; echo $?
    {STACK} nonesuch true; echo $?
    """
    result = umvm_run(body)
    assert result.stdout == "7\n127\n3\n3\n"
    lines = result.stderr.splitlines()
    assert len(lines) == 3 and all(line.startswith("umvm: ") for line in lines)


def test_from_outside(runner: Runner, tmp_path: Path) -> None:
    end = tmp_path / "end"
    body = f"while [ ! -e '{end}' ]; do sleep 0.05; done"
    vm = runner.start_umvm(body, modules=["net"], options=["--name", "outside"])
    assert wait_until(lambda: "outside" in runner.command("ls").stdout)
    shown = runner.command("stack", "--vm", "outside", "null", "sh", "-c", TRY)
    assert shown.ok() == "no\n"
    assert runner.command("exec", "outside", "sh", "-c", TRY).ok() == "yes\n"
    assert runner.command("stack", "--vm", "outside", "null").ok() == ""
    assert runner.command("exec", "outside", "sh", "-c", TRY).ok() == "no\n"
    end.touch()
    assert vm.wait(20) == 0


def test_unloading_gives_the_kernels_stack_back(umvm_run: Run) -> None:
    umvm = " ".join(UMVM)
    body = f"{TRY}; {umvm} rmmod net; {TRY}; {umvm} insmod net default=null; {TRY}"
    assert umvm_run(body, modules=[NULL]).ok() == "no\nyes\nno\n"


@pytest.mark.parametrize("module", ["net,default=none", "net,stack=null"])
def test_bad_options_are_refused(umvm_run: Run, module: str) -> None:
    result = umvm_run("echo never", modules=[module])
    assert (result.status, result.stdout, result.stderr.count("\n")) == (2, "", 1)


# --- connections ----------------------------------------------------------------------------------


def test_connections_that_exist_go_on(umvm_run: Run) -> None:
    source = f"""
import socket, subprocess
server = socket.create_server(("127.0.0.1", 0))
one = socket.create_connection(server.getsockname())
other, _ = server.accept()
waiting = socket.create_connection(server.getsockname())
subprocess.run({[*UMVM, "stack", "null"]!r}, check=True)
one.sendall(b"still here")
print(other.recv(100).decode())
accepted, _ = server.accept()
waiting.sendall(b"accepted later")
print(accepted.recv(100).decode())
try:
    socket.create_connection(server.getsockname())
except OSError as error:
    print(error.strerror)
"""
    result = umvm_run(["python3", "-c", source])
    expected = "still here\naccepted later\nAddress family not supported by protocol\n"
    assert result.ok() == expected


def test_curl_from_a_server_on_loopback(runner: Runner, tmp_path: Path) -> None:
    if subprocess.run(["which", "curl"], capture_output=True, check=False).returncode:
        pytest.skip("curl is not installed")
    (tmp_path / "file").write_text("fetched\n")
    source = """
import functools, http.server, sys
handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=sys.argv[1])
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
print(server.server_address[1], flush=True)
server.serve_forever()
"""
    server = runner.start(
        [*PYTHON, "-c", source, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert server.stdout is not None
    url = f"http://127.0.0.1:{int(server.stdout.readline())}/file"
    curl = f"curl -sS --noproxy '*' --max-time 20 {url}"
    result = runner.umvm(
        f"{curl}; {STACK} null; {curl}; echo $?; {STACK} host {curl}", modules=["net"]
    )
    server.kill()
    server.wait()
    assert result.stdout == "fetched\n7\nfetched\n"  # 7: couldn't connect


def test_names_without_a_network(umvm_run: Run) -> None:
    result = umvm_run("getent hosts localhost; getent passwd root", modules=[NULL])
    assert "localhost" in result.ok() and "root:" in result.stdout


def test_the_control_socket_works_without_a_network(umvm_run: Run) -> None:
    assert "net" in umvm_run(" ".join([*UMVM, "lsmod"]), modules=[NULL]).ok()


# --- stacks on paths ------------------------------------------------------------------------------


def test_a_stack_on_a_path(umvm_run: Run) -> None:
    umvm = " ".join(UMVM)
    body = f"""
    {umvm} mount -t net null /dev/net/none && cat /dev/net/none
    {STACK} /dev/net/none sh -c '{TRY}'; {TRY}
    {STACK} /dev/net/none; {TRY}; {STACK} host
    {umvm} umount /dev/net/none; {STACK} /dev/net/none true; echo $?
    """
    result = umvm_run(body)
    assert result.stdout == "null\nno\nyes\nno\n3\n"
    assert "no network stack '/dev/net/none'" in result.stderr


SIX = TRY.replace("socket.socket()", "socket.socket(socket.AF_INET6)")


def test_a_stack_for_one_family(umvm_run: Run) -> None:
    body = f"""
    {STACK} --ipv6 null sh -c '{TRY}; {SIX}'
    {STACK} --ipv4 host null sh -c '{TRY}; {SIX}'
    {STACK} --ipv6 null {STACK} --ipv4 null sh -c '{TRY}; {SIX}'
    """
    assert umvm_run(body).ok().split() == ["yes", "no", "yes", "no", "no", "no"]


def test_the_stack_of_a_vm_on_the_command_line(umvm_run: Run) -> None:
    assert umvm_run(TRY, options=["--net", "null"]).ok() == "no\n"
    for options in (["--ip", "10.0.0.1"], ["--net", "nonesuch"], ["--net", "null,x=y"]):
        result = umvm_run("echo never", options=options)
        assert (result.status, result.stdout, result.stderr.count("\n")) == (2, "", 1)
