"""umvm-proot: the command line of proot(1)."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Result, Runner
from rootfs import PROGRAMS, install

Run = Callable[..., Result]
PROOT = [sys.executable, "-m", "umvm.proot_cli"]


@pytest.fixture
def proot(runner: Runner, tmp_path: Path) -> Run:
    """Run words under umvm-proot; the root file system is `r` in the test's directory."""
    for program in PROGRAMS:
        install(tmp_path / "r", program)
    for name in ("tmp", "root", "proc", "m"):
        (tmp_path / "r" / name).mkdir()

    def run(*words: str) -> Result:
        return runner.run([*PROOT, *words], cwd=tmp_path)

    return run


def test_a_root_with_bindings_and_an_identity(proot: Run, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("bound\n")
    body = (
        "pwd; cat /m/f; ls -d /root /m; mkdir /m/new && stat -c %u /m/new; readlink /proc/self/exe"
    )
    done = proot("-r", "r", "-b", f"{tmp_path}:/m", "--bind=/proc", "-w", "/root", "-0",
                 "/bin/sh", "-c", body)  # fmt: skip
    assert done.ok() == f"/root\nbound\n/m\n/root\n0\n{shutil.which('readlink')}\n"
    assert (tmp_path / "new").stat().st_uid == os.geteuid()
    words = ("/bin/stat", "-c", "%u %g", "/proc/self/")
    assert proot("-r", "r", "-b", "/proc", "-i", "123:456", *words).ok() == "123 456\n"


def test_what_is_recommended(proot: Run, runner: Runner, tmp_path: Path) -> None:
    (tmp_path / "r" / "etc").mkdir()
    (tmp_path / "r" / "etc" / "passwd").write_text("inner\n")
    body = 'ls -d /dev/null /proc/self/ && ls "$HOME" && stat -c %u / && head -n 1 /etc/passwd'
    install(tmp_path / "r", "head")
    there = "/dev/null\n/proc/self/\n" + runner.run(["sh", "-c", 'ls "$HOME"']).ok()
    first = Path("/etc/passwd").read_text().splitlines()[0]
    me = os.geteuid()
    assert proot("-R", "r", "sh", "-c", body).ok() == f"{there}{me}\n{first}\n"
    assert proot("-S", "r", "sh", "-c", body).ok() == f"{there}0\ninner\n"


def test_the_release_of_the_kernel(proot: Run) -> None:
    script = "import os; print(os.uname().release, open('/proc/sys/kernel/osrelease').read())"
    done = proot("-k", "3.4.5-old", sys.executable, "-c", script)
    assert done.ok() == "3.4.5-old 3.4.5-old\n\n"


def test_command_lines(proot: Run) -> None:
    assert "--kernel-release" in proot("-h").ok()
    assert proot("--version").ok().startswith("umvm-proot version ")
    for bad in (["--nonsense"], ["-r"], ["-q", "qemu-arm", "true"], ["-0", "-i", "1:1", "true"]):
        refused = proot(*bad)
        assert refused.status == 2 and refused.stderr.count("\n") == 1
    assert proot("-r", "r", "sh", "-c", "exit 7").status == 7
    assert proot("-r", "r", "nothing").status == 127
    warned = proot("-r", "r", "-b", "/not/there", "pwd")
    assert warned.status == 0 and "/not/there" in warned.stderr
