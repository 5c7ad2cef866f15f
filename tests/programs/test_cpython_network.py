"""CPython's own network tests: what passes on the host passes on a virtual network, but for some."""

from __future__ import annotations

import re
import subprocess

import pytest
from harness import Runner

PYTHON = "/usr/bin/python3"
GROUPS = {
    "sockets": "test_socket -m *BasicTCP* -m *BasicUDP* -m *NonBlocking* -m *SendmsgUDP* "
    "-m *RecvmsgTCP* -m *RecvmsgIntoUDP* -m *NetworkConnection* "
    "-m *TCPTimeout* -m *UDPTimeout* -m *AncillaryUDP6*",
    "asyncio": "test_asyncio -m *test_streams* -m *test_sock_lowlevel* -m *test_server*",
    "servers": "test_httplib test_httpservers test_ftplib test_epoll",
}
DIFFER = {
    "testOutsideTimeout": "writes to a connection that the other side has closed",
}
FAILED = re.compile(r"^(?:FAIL|ERROR): (\S+)", re.MULTILINE)
RAN = re.compile(r"^Ran (\d+) tests?", re.MULTILINE)


@pytest.fixture(scope="module")
def own_tests() -> None:
    """Skip if the tests of Python aren't installed."""
    check = "import test.libregrtest as t; open(t.__path__[0] + '/../test_socket.py')"
    if subprocess.run([PYTHON, "-c", check], capture_output=True, check=False).returncode:
        pytest.skip("the system's Python has no tests: libpython3-testsuite")


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.usefixtures("own_tests")
@pytest.mark.parametrize("group", GROUPS)
def test_group(runner: Runner, group: str) -> None:
    argv = [PYTHON, "-B", "-m", "test", "-v", *GROUPS[group].split()]
    host = runner.run(argv, timeout=55)
    vm = runner.umvm(argv, options=["--net", "fabric"], timeout=55)
    failed = [set(FAILED.findall(result.stdout)) for result in (host, vm)]
    assert failed[1] - failed[0] - set(DIFFER) == set(), vm.stdout[-20000:]
    counts = [RAN.findall(result.stdout + result.stderr) for result in (host, vm)]
    assert counts[0] == counts[1] != [], vm
