"""Fixtures. What a test starts has a time limit and is gone with it; what it leaves fails it."""

from __future__ import annotations

import gc
import itertools
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import (
    Body,
    Compiler,
    Place,
    Result,
    Runner,
    compare,
    make_runtime,
    open_descriptors,
)
from hypothesis import settings
from same import Same
from vfs_oracle import Oracle

pytest_plugins = ["agent_fixtures", "views_fixtures"]

# the same cases in each run; UMVM_FUZZ=1: new ones
settings.register_profile(
    "umvm", deadline=None, database=None, derandomize=not os.environ.get("UMVM_FUZZ")
)
settings.load_profile("umvm")

_serial = itertools.count(1)
_PROBLEM = re.compile(r"^.*\b(?:WARNING|ERROR|CRITICAL)\b.*$|^Traceback .*$", re.MULTILINE)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--counts", help="Write `passed failed skipped` to this file.")


def pytest_configure(config: pytest.Config) -> None:
    parts = ("attributes", "base", "files", "names")
    pytest.register_assert_rewrite("contract", "differential", *(f"contract_{p}" for p in parts))
    for line in (
        "slow: takes more than a few seconds; ./dev test runs it as the ordinary user only",
        "expect_log(pattern): the supervisor logs this as a warning or worse (regular expression)",
    ):
        config.addinivalue_line("markers", line)


def pytest_terminal_summary(terminalreporter: Any, exitstatus: int, config: pytest.Config) -> None:
    path = config.getoption("counts")
    if path:
        groups = (("passed", "xpassed"), ("failed", "error"), ("skipped", "xfailed"))
        counts = [sum(len(terminalreporter.stats.get(k, ())) for k in group) for group in groups]
        Path(path).write_text(" ".join(map(str, counts)) + "\n")


@pytest.fixture(scope="session")
def runtime() -> Iterator[Path]:
    """The session's XDG_RUNTIME_DIR."""
    path = make_runtime()
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(autouse=True)
def no_new_descriptors() -> Iterator[None]:
    """The test process has no more descriptors after a test than before."""
    before = open_descriptors()
    yield
    until = time.monotonic() + 2  # a thread of a server may be about to close its own
    while True:
        gc.collect()
        new = {fd: what for fd, what in open_descriptors().items() if before.get(fd) != what}
        if not new or time.monotonic() > until:
            break
        time.sleep(0.05)
    assert not new, f"descriptors left open: {new}"


@pytest.fixture
def runner(
    request: pytest.FixtureRequest, runtime: Path, cache_home: Path, tmp_path: Path
) -> Iterator[Runner]:
    """Runs commands; fails the test if a process, a file or an unexpected log line stays."""
    log = tmp_path / "supervisor.log"
    marker = f"{secrets.token_hex(4)}-{next(_serial)}"
    runner = Runner(marker, runtime, log, cache_home)
    yield runner
    leaks = runner.close()
    expected = [mark.args[0] for mark in request.node.iter_markers("expect_log")]
    logged = runner.logged()
    lines = _PROBLEM.findall(logged)
    if expected:
        missing = [pattern for pattern in expected if not re.search(pattern, logged)]
        assert not missing, f"not logged: {missing}\n{logged}"
        allowed = [line for line in lines if any(re.search(p, line) for p in expected)]
        lines = [x for x in lines if x not in allowed and not x.startswith("Traceback ")]
    assert not lines, f"the supervisor logged:\n{logged}"
    assert not leaks, "\n".join(leaks)


@pytest.fixture
def umvm_run(runner: Runner) -> Callable[..., Result]:
    """`umvm_run(body, mounts=[…], modules=[…], input=…, env=…, timeout=…)`: run it in a new VM."""
    return runner.umvm


@pytest.fixture(params=["native", "vm"])
def where(request: pytest.FixtureRequest, runner: Runner, tmp_path: Path) -> Place:
    """An empty directory on the host, then one in a VM: the same assertions must hold in both."""
    return Place(request.param, runner, tmp_path / "w")


@pytest.fixture
def assert_same(runner: Runner, tmp_path: Path) -> Callable[..., Result]:
    """`assert_same(body, stderr=False, …)`: host and VM give the same output and status."""
    number = itertools.count(1)

    def check(
        body: Body, *, stderr: bool = False, fstype: str = "memory", **keywords: Any
    ) -> Result:
        # one path for both, as it may be part of the output
        place = tmp_path / f"w{next(number)}"
        native = Place("native", runner, place).run(body, **keywords)
        shutil.rmtree(place)
        vm = Place("vm", runner, place, fstype).run(body, **keywords)
        compare(native, vm, stderr)
        return vm

    return check


@pytest.fixture
def same_on_tmpfs(runner: Runner) -> Oracle:
    """`same_on_tmpfs(body, …)`: the host's tmpfs and memory in a VM give the same output."""
    return Oracle(runner)


@pytest.fixture(scope="session")
def guest_binary(tmp_path_factory: pytest.TempPathFactory) -> Compiler:
    """`guest_binary("name", static=False, musl=False)`: tests/guests/name.c, compiled."""
    return Compiler(tmp_path_factory.mktemp("guests"))


@pytest.fixture
def same(assert_same: Callable[..., Result]) -> Same:
    """One script of programs, on the host and in a VM: see `Same`."""

    def run(script: str, *tools: str, shell: str = "bash") -> str:
        missing = [tool for tool in tools if shutil.which(tool) is None]
        if missing:
            pytest.skip(f"not installed: {' '.join(missing)}")
        argv = [shell, "-c", f"exec 2>&1\n{script}\n"]
        return assert_same(argv, timeout=28).ok()

    return run
