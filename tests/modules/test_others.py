"""A guest that isn't root, and root's files: on the host under an identity, and on mounts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from harness import GUESTS, PYTHON, Runner

EXPECTED = """\
touch mine EACCES
touch open None
set times of open EPERM
write to set-id 0o777
set-id 0o777
cut set-id off None
set-id 0o777
fchdir EACCES
list []
open a FIFO EACCES
open one's own True
make a device None
its attribute EPERM
its attributes []
look at a link True
its access time 1000.0
"""
only_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root on the host")


def body(directory: Path) -> list[str]:
    return [*PYTHON, str(GUESTS / "others_files.py"), str(directory)]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory that others can reach."""
    for directory in (tmp_path, *list(tmp_path.parents)[:2]):
        if directory.owner() != "root" or os.geteuid() == 0:
            directory.chmod(directory.stat().st_mode | 0o011)
    return tmp_path


@only_root
def test_on_the_host(runner: Runner, place: Path) -> None:
    assert runner.run(body(place)).ok() == EXPECTED


@only_root
def test_passed_through_for_root(runner: Runner, place: Path) -> None:
    source, point = place / "source", place / "point"
    source.mkdir()
    point.mkdir()
    assert runner.umvm(body(point), mounts=[f"passthrough:{source}:{point}"]).ok() == EXPECTED


@pytest.mark.parametrize("kind", ["host", "memory"])
def test_for_a_root_of_the_vm(runner: Runner, place: Path, kind: str) -> None:
    point = place / "point"
    point.mkdir()
    mounts = [f"memory:none:{point}"] if kind == "memory" else []
    assert runner.umvm(body(point), mounts=mounts, options=["--fakeroot"]).ok() == EXPECTED
