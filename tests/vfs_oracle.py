"""The oracle of the VFS tests: tmpfs, which the `memory` file system promises to behave as."""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from harness import GUESTS, PYTHON, Body, Place, Result, Runner, argv_of, compare

TMPFS = Path("/dev/shm")
_serial = itertools.count(1)


def guest(name: str, *arguments: str) -> list[str]:
    """The command that runs a Python guest of tests/guests."""
    return [*PYTHON, str(GUESTS / f"{name}.py"), *arguments]


class Oracle:
    """Runs bodies in an empty directory of the host's tmpfs, and of `memory` at the same path."""

    def __init__(self, runner: Runner) -> None:
        if not _is_tmpfs(TMPFS):
            pytest.skip(f"tmpfs on {TMPFS}")
        self._runner = runner
        self._top = TMPFS / f"umvm-test-{os.getpid()}-{next(_serial)}"

    def __call__(self, body: Body, **keywords: Any) -> Result:
        """The VM's result, when it is the host's too."""
        inner = 'mkdir -m 755 w && cd w && exec "$@"'  # so that ".." is alike too
        body = ["/bin/sh", "-c", inner, "sh", *argv_of(body)]
        try:
            native = Place("native", self._runner, self._top).run(body, **keywords)
            shutil.rmtree(self._top)
            vm = Place("vm", self._runner, self._top, "memory").run(body, **keywords)
        finally:
            shutil.rmtree(self._top, ignore_errors=True)
        compare(native, vm)
        return vm


def _is_tmpfs(directory: Path) -> bool:
    with open("/proc/self/mounts", encoding="utf-8") as mounts:
        return any(line.split()[1:3] == [str(directory), "tmpfs"] for line in mounts)
