"""The stand-in for `fuse`, `fusepy` and `mfusepy`: FUSE programs run in a VM without libfuse.

For guests the directory `guest/` is put first in PYTHONPATH (`environment`). `import fuse` in a
Python program then finds our module there; its `FUSE(…)` asks the VM, over the control socket, to
mount what it serves over a socket of its own. Inside the supervisor the same classes are given to
program files that are loaded for `umvm mount -t fusepy` (umvm.modules.fuse).

guest/          the modules that programs import; they only fetch the rest
names           what the modules contain
operations, moperations   the base classes of fusepy's and of mfusepy's kind
mounting        FUSE(…)
session         a guest's serving loop
wire            the protocol
remote          the supervisor's end

All but `remote` must be importable on Python 3.8 and later with nothing but the standard library:
in a guest they are loaded under the package name `_umvm_guest`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping


def directory() -> str:
    """The directory that holds the stand-in modules."""
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "guest")


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that a VM sets for its guests, given those they would have."""
    ours, before = directory(), environ.get("PYTHONPATH", "")
    paths = [path for path in before.split(os.pathsep) if path and path != ours]
    return {"PYTHONPATH": os.pathsep.join([ours, *paths])}
