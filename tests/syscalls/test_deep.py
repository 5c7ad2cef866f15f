"""Directories whose paths are longer than PATH_MAX: relative names work there as on the host."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import GUESTS, PYTHON, Runner


@pytest.mark.parametrize("options", [(), ("--fakeroot",)], ids=["plain", "fakeroot"])
def test_names_far_down(runner: Runner, tmp_path: Path, options: tuple[str, ...]) -> None:
    host, point, source, shown = (tmp_path / name for name in ("host", "memory", "source", "shown"))
    for directory in (host, point, source, shown):
        directory.mkdir()
    body = [*PYTHON, str(GUESTS / "deep_names.py")]
    native = runner.run([*body, str(host)]).ok()
    assert f"length {40 * 201}" in native and "rm (0, 0, '')" in native
    mounts = [f"memory:none:{point}", f"passthrough:{source}:{shown}"]
    inside = runner.umvm(
        [*body, str(host), str(point), str(shown)], mounts=mounts, options=options, timeout=90
    ).ok()
    lines, expected = inside.splitlines(), native.splitlines()
    third = len(expected)
    assert lines[:third] == expected
    assert lines[third : 2 * third] == expected
    assert lines[2 * third :] == expected
