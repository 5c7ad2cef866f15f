"""Works in a directory whose path is too long for any call, as rm -r and tar do.

Arguments: directories. Prints one line an act; for tests/syscalls/test_deep.py.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

NAME = "d" * 200
LEVELS = 40


def show(title: str, act: Callable[[], object]) -> None:
    try:
        result = act()
    except OSError as error:
        result = errno.errorcode[error.errno or 0]
    print(title, result)


def count(*argv: str) -> tuple[int, int, str]:
    """Status, lines of output, and what it complains of."""
    done = subprocess.run(argv, capture_output=True, text=True)
    return done.returncode, done.stdout.count("\n"), done.stderr


def work(top: str) -> None:
    os.chdir(top)
    for _ in range(LEVELS):
        os.mkdir(NAME)
        os.chdir(NAME)
    far = os.open(".", os.O_RDONLY)
    show("write", lambda: Path("file").write_text("hello"))
    show("read", lambda: Path("file").read_text())
    show("chmod", lambda: os.chmod("file", 0o640))
    show("stat", lambda: oct(os.stat("file").st_mode))
    show("rename", lambda: os.rename("file", "second"))
    show("link", lambda: os.link("second", "third"))
    show("symlink", lambda: os.symlink("second", "l"))
    show("readlink", lambda: os.readlink("l"))
    show("mkdir", lambda: os.mkdir("sub"))
    show("unlink", lambda: os.unlink("third"))
    show("truncate", lambda: os.truncate("second", 2))
    show("utime", lambda: os.utime("second", (1, 1)))
    show("access", lambda: os.access("second", os.R_OK))
    show("missing", lambda: os.stat("missing"))
    show("length", lambda: len(os.getcwd()) - len(top))
    show("above", lambda: (os.path.exists(f"../{NAME}"), os.path.exists(f"../../{NAME}/{NAME}")))
    show("list", lambda: sorted(os.listdir(".")))
    show("ls", lambda: count("ls", "-l"))
    show("at", lambda: os.stat("second", dir_fd=far).st_size)
    show("unlink at", lambda: os.unlink("l", dir_fd=far))
    os.chdir(top)
    # a path that fits, from a directory that isn't far down, to a place that is
    os.chdir("/".join([NAME] * 15))
    near = "/".join([NAME] * 18)
    show("long rename", lambda: os.rename(near, NAME + "/moved"))
    show("long rename back", lambda: os.rename(NAME + "/moved", near))
    show("long link", lambda: os.symlink("x", near + "/x"))
    show("long lstat", lambda: os.lstat(near + "/x").st_size)
    show("long unlink", lambda: os.unlink(near + "/x"))
    show("long mkdir", lambda: os.mkdir(near + "/y"))
    show("long rmdir", lambda: os.rmdir(near + "/y"))
    os.chdir(top)
    show("find", lambda: count("find", "."))
    show("rm", lambda: count("rm", "-rf", NAME))
    show("left", lambda: os.listdir("."))


for directory in sys.argv[1:]:
    work(directory)
