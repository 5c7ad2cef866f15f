"""The private directory of a VM: where it is made, and who removes it."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest

from umvm.guest.shadow import Shadow, _fstype, candidates, remove, sweep


def test_candidates_prefer_memory_with_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", os.fsdecode(tmp_path))
    found = candidates()
    assert os.fsencode(tmp_path) in found and b"/tmp" in found
    kinds = [_fstype(path) for path in found]
    assert kinds == sorted(kinds, key=lambda kind: kind != b"tmpfs")  # as all have room here
    monkeypatch.setenv("XDG_RUNTIME_DIR", "relative")
    assert b"relative" not in candidates()


def test_shadow_is_private_and_goes(tmp_path: Path) -> None:
    shadow = Shadow("a/b c", [os.fsencode(tmp_path)])
    path = os.fsdecode(shadow.path)
    assert os.path.basename(path) == f"a_b_c.{os.getpid()}"
    assert not os.stat(path).st_mode & 0o066
    assert sorted(os.listdir(path)) == sorted("cdgopsx")
    shadow.close()
    assert list(tmp_path.iterdir()) == []


def test_two_of_one_name(tmp_path: Path) -> None:
    first, second = Shadow("vm", [os.fsencode(tmp_path)]), Shadow("vm", [os.fsencode(tmp_path)])
    assert first.path != second.path
    first.close()
    assert os.path.isdir(second.path)
    second.close()


def test_sweep_takes_the_dead_only(tmp_path: Path) -> None:
    living = Shadow("living", [os.fsencode(tmp_path)])
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        dying = Shadow("dying", [os.fsencode(tmp_path)])
        os.write(write, dying.path)
        os.kill(os.getpid(), signal.SIGKILL)
    os.close(write)
    os.waitpid(pid, 0)
    left = os.read(read, 4096)
    os.close(read)
    assert os.path.isdir(left)
    sweep([os.fsencode(tmp_path)])
    assert not os.path.exists(left)
    assert os.path.isdir(living.path)
    remove(living.path)  # as the watchdog does for a supervisor that was killed
    living.close()
    assert list(tmp_path.iterdir()) == []


def test_foreign_directory_is_refused(tmp_path: Path) -> None:
    squatted = tmp_path / "x" / f"umvm-{os.geteuid()}"
    squatted.mkdir(parents=True)
    squatted.chmod(0o777)
    with pytest.raises(OSError, match="isn't ours alone") as caught:
        Shadow("vm", [os.fsencode(tmp_path / "x")])
    assert caught.value.errno == errno.ENOTSUP
    fallback = Shadow("vm", [os.fsencode(tmp_path / "x"), os.fsencode(tmp_path)])
    assert os.path.dirname(os.path.dirname(fallback.path)) == os.fsencode(tmp_path)
    fallback.close()
