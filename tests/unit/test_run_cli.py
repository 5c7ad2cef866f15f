"""The quick reader of `umvm run` reads a command line as click does, or leaves it to click."""

from __future__ import annotations

from typing import Any

import pytest

from umvm import run_cli
from umvm.cli import run as command


def by_click(arguments: list[str]) -> dict[str, Any]:
    context = command.make_context("run", list(arguments))
    return dict(context.params)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["true"],
        ["ls", "-l", "--name", "x"],
        ["--", "-x", "y"],
        ["--", "--", "y"],
        ["--name", "a", "-m", "fuse", "-m", "net,x=1", "true"],
        ["--name=a", "--mount=memory:none:/mnt:a=b", "--kill-on-exit", "sh", "-c", "true"],
        ["-C", "/tmp", "-e", "A=b=c", "--env", "B=", "env"],
        ["-v", "--verbose", "--log", "/tmp/x", "true"],
        ["--config", "a.toml", "--", "true", "--", "x"],
        ["--name", "", "true"],
    ],
)
def test_same_as_click(arguments: list[str]) -> None:
    quick = run_cli.read(arguments)
    assert quick is not None
    assert quick == by_click(arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["-h"],
        ["-vv", "x"],
        ["--nam", "x"],
        ["--name"],
        ["--kill-on-exit=1"],
        ["-mfuse"],
    ],
)
def test_the_rest_is_for_click(arguments: list[str]) -> None:
    assert run_cli.read(arguments) is None


def test_exec_errors_follow_the_shell() -> None:
    missing = run_cli.exec_error("x", FileNotFoundError(2, "No such file or directory", "x"))
    denied = run_cli.exec_error("x", PermissionError(13, "Permission denied", "x"))
    assert getattr(missing, "exit_code", None) == 127
    assert getattr(denied, "exit_code", None) == 126
    other = FileNotFoundError(2, "No such file or directory", "/mnt")
    assert run_cli.exec_error("x", other) is other
