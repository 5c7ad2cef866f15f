"""An interactive shell in the VM under a real terminal: job control as outside."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest
from harness import UMVM, Runner, wait_until

PROMPT = "READY> "


def shell(argv: list[str], runner: Runner) -> pexpect.spawn:
    """An interactive bash with a prompt of ours on a terminal of its own."""
    env = runner.environ({"PS1": PROMPT, "TERM": "dumb", "HISTFILE": ""})
    return pexpect.spawn(argv[0], argv[1:], env=env, timeout=15, encoding="utf-8", echo=False)


@pytest.fixture(params=["memory", "no mount"])
def inside(
    request: pytest.FixtureRequest, runner: Runner, tmp_path: Path
) -> Iterator[pexpect.spawn]:
    """bash inside a VM, standing in a mount or not."""
    options = ["--log", str(runner.log)]
    if request.param == "memory":
        options += ["--mount", f"memory:none:{tmp_path}", "-C", str(tmp_path)]
    child = shell([*UMVM, "run", *options, "--", "bash", "--norc", "--noprofile", "-i"], runner)
    child.expect_exact(PROMPT)
    yield child
    try:
        child.close(force=True)
    except pexpect.ExceptionPexpect:  # it was killed, and takes its time
        assert wait_until(lambda: not child.isalive())


def ask(child: pexpect.spawn, line: str) -> str:
    """What a command printed."""
    child.sendline(line)
    child.expect_exact(PROMPT)
    return str(child.before).replace("\r\n", "\n")


def test_interrupt(inside: pexpect.spawn) -> None:
    inside.sendline("sleep 100")
    assert wait_until(lambda: foreground(inside) == "sleep")
    inside.sendintr()
    inside.expect_exact(PROMPT)
    assert ask(inside, "echo $?") == f"{128 + signal.SIGINT}\n"


def test_stop_and_go_on(inside: pexpect.spawn) -> None:
    inside.sendline("sleep 2; echo after-$?")
    assert wait_until(lambda: foreground(inside) == "sleep")
    inside.sendcontrol("z")
    inside.expect_exact("Stopped")
    inside.expect_exact(PROMPT)
    assert "Stopped" in ask(inside, "jobs")
    inside.sendline("fg")
    inside.expect_exact("sleep 2")
    inside.expect_exact(PROMPT)
    assert "sleep" not in ask(inside, "jobs")


def test_background_jobs(inside: pexpect.spawn) -> None:
    ask(inside, "sleep 50 & sleep 51 &")
    assert ask(inside, "jobs -r").count("Running") == 2
    ask(inside, "kill %1 %2; wait")
    assert "Running" not in ask(inside, "jobs -r")


def test_terminal_quit_and_end_of_file(inside: pexpect.spawn) -> None:
    inside.sendline("cat")
    assert wait_until(lambda: foreground(inside) == "cat")
    inside.sendeof()
    inside.expect_exact(PROMPT)
    assert ask(inside, "tty").startswith("/dev/pts/")
    inside.sendline("exit 7")
    inside.expect(pexpect.EOF)
    inside.wait()
    assert inside.exitstatus == 7


def test_window_size_reaches_the_guest(inside: pexpect.spawn) -> None:
    inside.setwinsize(33, 99)
    assert ask(inside, "stty size") == "33 99\n"


def foreground(child: pexpect.spawn) -> str:
    """The name of the terminal's foreground process group's leader."""
    try:
        group = os.tcgetpgrp(child.fileno())
        return Path(f"/proc/{group}/comm").read_text().strip()
    except OSError:
        return ""


def test_the_outer_shell_sees_its_job_stop(runner: Runner) -> None:
    """^Z on `umvm run CMD` itself, from the shell that started it."""
    outer = shell(["bash", "--norc", "--noprofile", "-i"], runner)
    try:
        outer.expect_exact(PROMPT)
        command = f"{sys.executable} -m umvm run --log {runner.log} -- sleep 3"
        outer.sendline(command + "; echo status-$?")
        assert wait_until(lambda: has_child_named(outer.pid, "sleep"))
        outer.sendcontrol("z")
        outer.expect_exact("Stopped")
        outer.expect_exact(PROMPT)
        outer.sendline("fg; echo status-$?")
        outer.expect("status-(\\d+)")
        assert outer.match is not None and outer.match.group(1) == "0"
        outer.expect_exact(PROMPT)
        outer.sendline(command + "; echo status-$?")
        assert wait_until(lambda: has_child_named(outer.pid, "sleep"))
        outer.sendintr()
        outer.expect_exact(f"status-{128 + signal.SIGINT}")
        outer.expect_exact(PROMPT)
    finally:
        outer.close(force=True)


def has_child_named(pid: int, name: str) -> bool:
    """Is there a process of this name below `pid`?"""
    from umvm.guest.process import descendants

    for below in descendants([pid])[1:]:
        try:
            if Path(f"/proc/{below}/comm").read_text().strip() == name:
                return True
        except OSError:
            continue
    return False
