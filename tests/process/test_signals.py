"""Signals that come while a call is on its way to the supervisor."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from harness import Compiler, Place, Result


@pytest.mark.parametrize("name", ["f", "/dev/shm/umvm-storm-$$"], ids=["served", "host"])
def test_calls_that_never_wait(where: Place, guest_binary: Compiler, name: str) -> None:
    program = guest_binary("signal_storm")
    body = f"f={name}; echo text >$f; {program} storm $f; echo $?; rm $f"
    assert where.run(body).stdout == "0 failures, signals 1 1\n0\n"


def test_calls_that_wait(assert_same: Callable[..., Result], guest_binary: Compiler) -> None:
    shown = assert_same([str(guest_binary("signal_storm")), "wait"]).ok()
    assert shown.count("Interrupted system call") == 5


def test_forkserver(where: Place) -> None:
    """Its SIGCHLD handler doesn't restart calls, and close(2) must not fail (PEP 475)."""

    def body() -> list[int | None]:
        import multiprocessing
        import time

        context = multiprocessing.get_context("forkserver")
        children = [context.Process(target=time.sleep, args=(0.01,)) for _ in range(40)]
        for child in children:
            child.start()
        for child in children:
            child.join()
        return [child.exitcode for child in children if child.exitcode]

    assert where.run(body).stdout == "result []\n"
