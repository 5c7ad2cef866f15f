"""A root file system for the tests of views."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from rootfs import PROGRAMS, install


@pytest.fixture(scope="session")
def _pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root") / "r"
    for name in ("etc", "tmp", "d/e"):
        (root / name).mkdir(parents=True)
    for program in PROGRAMS:
        install(root, program)
    (root / "etc/hostname").write_text("inner\n")
    (root / "etc/only").write_text("here\n")
    (root / "abs").symlink_to("/etc/hostname")
    (root / "d/up").symlink_to("../../../../etc/hostname")
    script = root / "bin/script"
    script.write_text('#!/bin/sh -e\necho "$0 $*"; pwd\n')
    script.chmod(0o755)
    return root


@pytest.fixture
def root(_pristine: Path, tmp_path: Path) -> Iterator[Path]:
    """A fresh copy of the root file system; hard links of the programs."""
    place = tmp_path / "root"
    shutil.copytree(_pristine, place, symlinks=True)
    yield place
    shutil.rmtree(place)
