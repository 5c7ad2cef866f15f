"""Root in a VM and real root make the same random calls on owners and modes, with the same results."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import GUESTS, PYTHON, UMVM, Runner, readable_by_others

NOBODY = 65534
AS_NOBODY = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
SEQUENCES = int(os.environ.get("UMVM_SEQUENCES", "12"))
"""As many sequences are made of each kind; 2000 take some minutes."""
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root on the host")


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that everybody may pass: nobody's VM works there too."""
    path = Path(tempfile.mkdtemp(prefix="umvm-owners-"))
    path.chmod(0o755)
    for name in ("native", "vm", "run"):
        (path / name).mkdir()
        os.chown(path / name, NOBODY if name != "native" else 0, -1)
    yield path
    shutil.rmtree(path)


def transcript(runner: Runner, place: Path, prefix: list[str], top: str, *numbers: int) -> str:
    guest = str(shutil.copy(GUESTS / "owner_calls.py", place))
    argv = [*prefix, *PYTHON, guest, str(place / top), *map(str, numbers)]
    env = {"XDG_RUNTIME_DIR": str(place / "run"), "XDG_CACHE_HOME": str(place / "run")}
    return runner.run(argv, env=env, timeout=max(55, SEQUENCES)).ok()


@needs_root
@pytest.mark.parametrize(("user", "first"), [("root", 1000), ("nobody", 2000)])
def test_the_same_calls_as_real_root(runner: Runner, place: Path, user: str, first: int) -> None:
    prefix = [*UMVM, "run", "--fakeroot", "--"]
    if user == "nobody":
        readable_by_others(runner)
        prefix = [*AS_NOBODY, *prefix]
    native = transcript(runner, place, [], "native", first, SEQUENCES, 40)
    vm = transcript(runner, place, prefix, "vm", first, SEQUENCES, 40)
    assert native.count("\n") > 500 and "Permission denied" in native
    assert vm.splitlines() == native.splitlines()
