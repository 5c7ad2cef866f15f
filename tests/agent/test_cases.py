"""The hard cases of agent_cases.c: the same natively, in a VM whose guests are patched, and in one
where nothing is patched."""

from __future__ import annotations

import os
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from agent_fixtures import InAgent, entries
from harness import Compiler, Runner, analysers, wait_until

NAMES = [
    "storm",
    "interrupted",
    "jump_out",
    "small_stacks",
    "red_zone",
    "threads",
    "cancel",
    "vforked",
    "twice",
    "bad_pointers",
    "memory_limit",
    "own_fault",
    "environment",
]


@pytest.mark.parametrize("name", NAMES)
def test_patched(
    runner: Runner,
    in_agent: InAgent,
    cases: Path,
    warm: Callable[..., None],
    cache_home: Path,
    name: str,
) -> None:
    native = runner.run([str(cases), name])
    warm("agent_cases")
    assert entries(cache_home)["agent_cases"]["sites"] == 1, "red_zone's own call"
    assert entries(cache_home)["libc.so.6"]["sites"] > 100
    assert native.status == 0
    assert in_agent([str(cases), name]) == native


@pytest.mark.expect_log("programs are not patched")
@pytest.mark.parametrize(
    "name", ["interrupted", "vforked", "bad_pointers", "threads", "environment"]
)
def test_unpatched(
    runner: Runner, in_agent: InAgent, cases: Path, tmp_path: Path, name: str
) -> None:
    """Correctness never depends on patching: the cache can't be used, so nothing is patched."""
    empty = tmp_path / "cache"
    empty.mkdir()
    empty.chmod(0o777)
    (empty / "umvm").mkdir()
    (empty / "umvm/text").mkdir()
    (empty / "umvm/text").chmod(0o777)
    native = runner.run([str(cases), name])
    assert in_agent([str(cases), name], env={"XDG_CACHE_HOME": str(empty)}) == native
    assert not os.listdir(empty / "umvm/text"), "a directory that others can write isn't used"


def test_what_lies_in_the_working_directory_is_not_run(runner: Runner, tmp_path: Path) -> None:
    """Programs are analysed by this umvm, not by a package of that name where the user stands."""
    (tmp_path / "umvm").mkdir()
    (tmp_path / "umvm" / "__init__.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    command = shutil.which("umvm", path=str(Path(sys.executable).parent))
    assert command is not None
    argv = [command, "run", "--engine", "agent", "--log", str(runner.log), "--", "ls"]
    runner.run(argv, env={"XDG_CACHE_HOME": str(tmp_path / "cache")}, cwd=tmp_path).ok()
    assert wait_until(lambda: "libc.so.6" in entries(tmp_path / "cache"))
    assert wait_until(lambda: not analysers(tmp_path))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("share", ["30", "70"])
def test_partly_patched(
    runner: Runner, cases: Path, in_agent: InAgent, tmp_path: Path, share: str
) -> None:
    """Some of the calls are patched, others notified."""
    env = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "UMVM_PATCH": f"{share}:{os.getpid()}"}

    def known() -> bool:  # a VM that ends before the analysis has begun leaves it to the next one
        in_agent(f"{cases} >/dev/null; ls >/dev/null", env=env)
        assert wait_until(lambda: not analysers(tmp_path))
        return "libc.so.6" in entries(tmp_path / "cache")

    assert wait_until(known, 40), entries(tmp_path / "cache")
    assert 40 < entries(tmp_path / "cache")["libc.so.6"]["sites"] < 300, env
    for name in ("interrupted", "vforked", "bad_pointers", "threads", "environment", "twice"):
        native = runner.run([str(cases), name])
        assert in_agent([str(cases), name], env=env) == native, env


def test_signals(
    in_agent: InAgent,
    warm: Callable[..., None],
    guest_binary: Compiler,
    tmp_path: Path,
) -> None:
    """Handlers that don't restart calls: only what waits may be interrupted."""
    storm, point = guest_binary("signal_storm"), tmp_path / "m"
    point.mkdir()
    warm("cat", run="cat /dev/null")
    body = f"cd {point}; echo >f; {storm} storm f; {storm} wait; echo >$0; {storm} storm $0"
    result = in_agent(["sh", "-c", body, str(tmp_path / "f")], mounts=(f"memory:none:{point}",))
    assert result.stdout.count("0 failures, signals 1 1") == 2, result
    assert result.stdout.count("Interrupted system call") == 5, result


def test_namespaces(
    runner: Runner, in_agent: InAgent, cases: Path, warm: Callable[..., None]
) -> None:
    """A child in a namespace of its own would be out of the view: EPERM, and EINVAL where Linux
    gives that first. The call is libc's, which is patched, or is notified."""
    warm("agent_cases")
    told = "1 1\n" * 3 + "22 22\n" * 2
    assert in_agent([str(cases), "namespaces"]).stdout == told
    assert in_agent([str(cases), "namespaces"], mounts=()).stdout == told
    notified = runner.umvm([str(cases), "namespaces"], options=["--engine", "notify"])
    assert notified.stdout == told


def test_copies_are_ours_alone(warm: Callable[..., None], cache_home: Path) -> None:
    warm()
    directory = cache_home / "umvm/text"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    for file in directory.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


def test_a_copy_that_others_could_write_is_not_mapped(
    in_agent: InAgent, warm: Callable[..., None], cache_home: Path
) -> None:
    warm()
    copy = cache_home / "umvm/text" / entries(cache_home)["libc.so.6"]["copy"]
    body = "cat /proc/self/maps; python3 -c 0; exec sh -c 'cat /proc/$$/maps | grep -c r-xp'"
    copy.chmod(0o622)
    try:
        assert in_agent(body).status == 0
    finally:
        if copy.exists():  # the analyser may have made it anew, under another name
            copy.chmod(0o600)


def test_steady_state_has_no_notifications(in_agent: InAgent, warm: Callable[..., None]) -> None:
    def body() -> object:
        import os
        import subprocess
        import sys

        sys.path[:0] = os.environ["WHERE"].split(":")
        from pathlib import Path

        from umvm.control import client

        def work() -> None:
            script = "for i in 1 2 3 4 5; do ls /usr; test -f /etc/passwd; cat /etc/hostname; done"
            subprocess.run(["/bin/sh", "-c", script], stdout=subprocess.DEVNULL, check=True)

        def counts() -> dict[str, int]:
            answer: dict[str, int] = client.call(Path(os.environ["UMVM_SOCKET"]), "info")["counts"]
            return answer

        work()
        before = counts()
        for _ in range(5):
            work()
        after = counts()
        loads = after["loads"] - before["loads"]
        asked = after["passed"] + after["claimed"] - before["passed"] - before["claimed"]
        return (
            loads,
            asked < 30,
            after["unpatched"] - before["unpatched"],
            asked if asked >= 30 else 0,
        )

    warm("cat", "ls", run="ls >/dev/null; cat /etc/hostname; /usr/bin/env python3 -c 0")
    places = [str(Path(__file__).parents[2]), *(p for p in sys.path if "site-packages" in p)]
    for _ in range(2):
        result = in_agent(body, env={"WHERE": ":".join(places)})
    assert result.ok() == "result (55, True, 0, 0)\n", "5 shells with 10 programs each"
