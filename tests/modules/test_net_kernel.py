"""The stack `kernel`: a real network of its own, without privilege on the host."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import PYTHON, UMVM, Result, Runner, wait_until

Run = Callable[..., Result]
KERNEL = ["--net", "kernel"]
UMVM_TEXT = " ".join(UMVM)
HARMLESS = ["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin"]


@pytest.fixture(scope="module", autouse=True)
def namespaces() -> None:
    """Skip where the host has no user namespaces for us."""
    made = subprocess.run(["unshare", "-Urn", "true"], capture_output=True)
    if made.returncode:
        pytest.skip("no user namespaces on this host")


@pytest.fixture
def vm(runner: Runner) -> Run:
    """Runs a body in a VM that can't change the host's network, whatever goes wrong."""

    def run(body: object, options: list[str], modules: tuple[str, ...] = ()) -> Result:
        argv = runner.umvm_argv(body, (), modules, options)  # type: ignore[arg-type]
        return runner.run([*HARMLESS, *argv] if os.geteuid() == 0 else argv)

    return run


def needs(*tools: str) -> None:
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")


def test_it_is_a_network_of_its_own(vm: Run) -> None:
    needs("ip")
    body = """
    ip -br addr
    ip link add umvt0 type veth peer name umvt1; ip link set umvt0 up; ip link set umvt1 up
    ip addr add 10.99.0.1/24 dev umvt0; ip -br -4 addr show umvt0; ip route
    """
    body += f"""{" ".join(PYTHON)} -c 'import socket; print(socket.if_nametoindex("umvt0"))'
    ip -o link show umvt0 | cut -d : -f 1"""
    lines = vm(body, KERNEL).ok().splitlines()
    assert lines[0].split() == ["lo", "UNKNOWN", "127.0.0.1/8", "::1/128"]
    assert lines[1].split() == ["umvt0@umvt1", "UP", "10.99.0.1/24"]
    assert lines[2].strip() == "10.99.0.0/24 dev umvt0 proto kernel scope link src 10.99.0.1"
    assert len(lines) == 5 and lines[3] == lines[4]


def sockets() -> list[object]:
    """What a user may do in a network that is theirs."""
    import socket

    server = socket.create_server(("127.0.0.1", 80))
    client = socket.create_connection(("127.0.0.1", 80))
    server.accept()[0].sendall(b"through")
    found: list[object] = [client.recv(7), client.getpeername()]
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    packet = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 3)
    quick = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    found += [raw.type, packet.family, quick.getblocking()]
    try:
        socket.socket(socket.AF_INET, 5)
    except OSError as error:
        found.append(error.errno)
    return found


def test_sockets(vm: Run) -> None:
    expected = "[b'through', ('127.0.0.1', 80), 3, 17, False, 94]"
    shown = vm(sockets, KERNEL).ok()
    assert shown.replace("<SocketKind.SOCK_RAW: 3>", "3").replace(
        "<AddressFamily.AF_PACKET: 17>", "17"
    ) == f"result {expected}\n"  # fmt: skip


def test_ping(vm: Run) -> None:
    needs("ping")
    assert "1 received" in vm("ping -c 1 127.0.0.1", KERNEL).ok()


def test_mounted_and_by_family(vm: Run) -> None:
    """It isn't the host's, IPv6 alone can be its, and its helper goes with the mount."""
    needs("ip")
    body = f"""
    {UMVM_TEXT} mount -t net kernel /dev/net/k; cut -d ' ' -f 1 /dev/net/k
    helper=$(cut -d ' ' -f 3 /dev/net/k)
    {UMVM_TEXT} stack /dev/net/k ip -br link show up | wc -l
    {UMVM_TEXT} stack --netlink /dev/net/k ip -br link show up | wc -l
    kill -0 $helper && echo there; {UMVM_TEXT} umount /dev/net/k
    kill -0 $helper 2>/dev/null || echo gone
    """
    assert vm(body, [], ("net",)).ok() == "kernel\n1\n1\nthere\ngone\n"


def test_abstract_names_of_its_own(vm: Run, runner: Runner) -> None:
    """With `unix=private`; connections still know who is at the other end."""
    source = """
import os, socket, struct
server = socket.socket(socket.AF_UNIX); server.bind(NAME); server.listen()
client = socket.socket(socket.AF_UNIX); client.connect(NAME)
accepted, _ = server.accept()
pid, uid, gid = struct.unpack("=iii", accepted.getsockopt(1, 17, 12))
print(pid == os.getpid(), uid == os.geteuid())
"""
    name = f"\0umvm-test-{os.getpid()}"
    import socket

    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind(name)
        argv = [*PYTHON, "-c", source.replace("NAME", repr(name))]
        assert vm(argv, ["--net", "kernel,unix=private"]).ok() == "True True\n"
        assert "Address already in use" in vm(argv, KERNEL).stderr


def helper_of(stack: str) -> int:
    return int(stack.split()[2])


def test_the_helper_ends_with_a_killed_supervisor(runner: Runner, tmp_path: Path) -> None:
    where = tmp_path / "stack"
    body = f"{UMVM_TEXT} mount -t net kernel /dev/net/k; cat /dev/net/k >{where}; sleep 60"
    process = runner.start_umvm(body, modules=["net"])
    assert wait_until(lambda: where.exists() and where.read_text().endswith("\n"))
    helper = helper_of(where.read_text())
    os.kill(helper, 0)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()

    def gone() -> bool:
        try:
            os.kill(helper, 0)
        except ProcessLookupError:
            return True
        with open(f"/proc/{helper}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] == "Z"

    assert wait_until(gone)


def test_a_host_without_user_namespaces_is_named(runner: Runner) -> None:
    argv = runner.umvm_argv("echo never", (), (), KERNEL)
    setting = "/proc/sys/user/max_user_namespaces"
    closed = ["unshare", "-Ur", "sh", "-c", f'echo 0 >{setting} || exit 99; exec "$0" "$@"']
    result = runner.run([*closed, *argv])
    if result.status == 99:
        pytest.skip("the setting can't be changed here")
    assert (result.status, result.stdout) == (1, "")
    assert result.stderr.startswith("umvm: kernel: no network namespace: ")
    assert "user.max_user_namespaces is 0" in result.stderr


@pytest.mark.parametrize(
    ("options", "status", "text"),
    [
        ("kernel,exit=nothing", 2, "exit is one of"),
        ("kernel,speed=9", 2, "unknown option"),
        ("kernel:x", 2, "unknown option"),
    ],
)
def test_bad_options(vm: Run, options: str, status: int, text: str) -> None:
    result = vm("echo never", ["--net", options])
    assert (result.status, result.stdout, result.stderr.count("\n")) == (status, "", 1)
    assert text in result.stderr


@pytest.mark.parametrize("program", ["slirp4netns", "pasta"])
def test_the_way_out(vm: Run, program: str) -> None:
    needs("ip")
    result = vm(
        "ip -4 route show default; ip -br link | wc -l", ["--net", f"kernel,exit={program}"]
    )
    if shutil.which(program) is None:
        assert (result.status, result.stdout) == (1, "")
        assert f"{program} is not installed" in result.stderr
        return
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        pytest.skip("no access to /dev/net/tun")
    default, links = result.ok().splitlines()
    assert default.startswith("default via ") and links == "2"
