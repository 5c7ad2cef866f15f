"""Changes of owners that root makes without asking: each is seen at once, whoever is in the way."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import Compiler, Result, Runner, readable_by_others

Run = Callable[..., Result]


def test_changes_in_a_hurry(umvm_run: Run, guest_binary: Compiler, tmp_path: Path) -> None:
    program = str(guest_binary("owner_notes"))
    done = umvm_run([program, str(tmp_path), "150"], options=["--fakeroot"], timeout=55)
    assert done.ok() == "ok\n"


def test_what_was_changed_last_is_saved(umvm_run: Run, tmp_path: Path) -> None:
    """Nobody looks at the files between the last change and the end."""
    owners = tmp_path / "owners.db"
    body = f"cd {tmp_path}; touch a b; chown 5:6 a; chmod 4711 a; chown 7 b; rm b; chown 8:9 a"
    umvm_run(body, options=["--fakeroot", "--save", str(owners)]).ok()
    with sqlite3.connect(owners) as database:
        rows = database.execute("SELECT uid, gid, mode FROM owners").fetchall()
    assert rows == [(8, 9, 0o100711)]


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that everybody may pass."""
    path = Path(tempfile.mkdtemp(prefix="umvm-notes-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def test_fakeroot_for_a_user(runner: Runner, place: Path) -> None:
    """--fakeroot with --user: the files are root's, and the guest is somebody else."""
    readable_by_others(runner)
    body = (
        "id -u; stat -c %u:%g .; touch a 2>/dev/null || echo no;"
        " umvm su root -c 'chmod 777 .; echo x > b; chown 5:6 b';"
        " touch a; stat -c '%n %u:%g' a b; rm b; chown 0 a 2>/dev/null || echo no"
    )
    done = runner.umvm(body, options=["--fakeroot", "--user", "33:44", "-C", str(place)])
    assert done.ok().split("\n") == ["33", "0:0", "no", "a 33:44", "b 5:6", "no", ""]
