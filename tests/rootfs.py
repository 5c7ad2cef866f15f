"""A small root file system, made of the host's own programs."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

PROGRAMS = ("sh", "cat", "ls", "pwd", "readlink", "mkdir", "env", "ln", "rm", "stat")


def libraries(program: str) -> list[str]:
    """The shared libraries that a program needs, its interpreter included."""
    text = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    return re.findall(r"(/\S+) \(0x", text)


def install(root: Path, program: str) -> None:
    """Copy a program of the host, and what it needs, to the same paths below `root`."""
    found = shutil.which(program)
    assert found is not None
    for path in (found, *libraries(found)):
        target = root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            shutil.copy(path, target)
    link = root / "bin" / Path(found).name
    link.parent.mkdir(exist_ok=True)
    if not link.exists():
        link.symlink_to(found)
