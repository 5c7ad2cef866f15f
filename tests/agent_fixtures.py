"""Fixtures for guests with an agent: one cache of patched programs for all tests."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from harness import GUESTS, Result, Runner, analysers, wait_until

from umvm.agent.service import available

InAgent: TypeAlias = Callable[..., Result]


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guest agent_cases, compiled. Where there can be no agent this says why."""
    reason = available()
    if reason:
        pytest.skip(reason)
    program = tmp_path_factory.mktemp("guests") / "agent_cases"
    source = GUESTS / "agent_cases.c"
    subprocess.run(
        ["cc", "-O2", "-w", "-o", program, source, "-lpthread", "-ldl"], check=True, timeout=60
    )
    return program


@pytest.fixture(scope="session")
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cache directory of all tests (XDG_CACHE_HOME)."""
    path = tmp_path_factory.mktemp("cache")
    yield path
    assert wait_until(lambda: not analysers(path)), "a process goes on patching programs"


def entries(cache_home: Path) -> dict[str, dict[str, Any]]:
    """What the cache knows: by the file's name, how many calls are patched and in which copy."""
    try:
        index = json.loads((cache_home / "umvm/text/index.json").read_bytes())
    except OSError:
        return {}
    return {Path(one[7]).name: {"sites": one[6], "copy": one[5]} for one in index["entries"]}


@pytest.fixture
def in_agent(runner: Runner, cache_home: Path) -> InAgent:
    """Run a body in a VM with agent that has a mount somewhere else."""
    point = runner.home / "elsewhere"
    point.mkdir()

    def run(
        body: Any, mounts: tuple[str, ...] = (f"memory:none:{point}",), **keywords: Any
    ) -> Result:
        env = {"XDG_CACHE_HOME": str(cache_home), **keywords.pop("env", {})}
        return runner.umvm(body, mounts=mounts, options=["--engine", "agent"], env=env, **keywords)

    return run


@pytest.fixture
def warm(in_agent: InAgent, cases: Path, cache_home: Path) -> Callable[..., None]:
    """Run programs until the cache knows these files (names), libc and ld.so."""

    def until(*names: str, run: str = "") -> None:
        wanted = {"libc.so.6", *names}
        end = time.monotonic() + 40
        while not wanted <= entries(cache_home).keys():
            assert time.monotonic() < end, entries(cache_home)
            in_agent(f"{cases} >/dev/null; {run or ':'}; sleep 0.5")

    return until
