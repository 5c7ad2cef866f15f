"""`umvm doctor` on the host of the tests, which can run VMs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from umvm import doctor


def test_this_host_can_run_vms() -> None:
    report = {check.name: check for check in doctor.examine()}
    assert len(report) == len(doctor.CHECKS)
    assert [check for check in report.values() if check.state == doctor.MISSING] == []
    assert {check.state for check in report.values()} <= {"ok", "slow", "info"}
    assert all(check.reason for check in report.values())


def test_a_check_that_fails_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> tuple[str, str]:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(doctor, "CHECKS", (("thing", broken),))
    assert doctor.examine() == [doctor.Check("thing", "missing", "Operation not permitted")]


def test_a_host_with_a_listener_is_told_so() -> None:
    """The check is made by a process that has a filter with a listener, as inside a VM."""
    code = (
        "import json; from umvm import doctor as d;"
        "d._checked(d._libc.prctl(38, 1, 0, 0, 0));"
        "p = d._Program(1, d.RET_ALLOW);"
        "import ctypes; d._syscall('seccomp', 1, d.NEW_LISTENER, ctypes.byref(p));"
        "print(json.dumps(d._listener()))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
    )
    state, reason = json.loads(out.stdout)
    assert state == "missing" and "listener is there already" in reason


def test_pids_of_children_are_reaped() -> None:
    children = Path("/proc/thread-self/children")
    before = children.read_text()
    doctor.examine()
    assert children.read_text() == before
