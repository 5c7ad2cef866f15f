"""The supervisor's side of the agent: the shared area, the loader, and what executes through it."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Sequence
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import core_accel
from core_accel import agentarea, launch
from core_accel.pathwalk import View
from umvm.agent.calls import AGENT_KINDS, ODD_NAMES
from umvm.guest.process import status

MAILBOXES = 64
EM_X86_64 = 62


def loader_file() -> Path:
    """The loader as it was built; not a Python module, in spite of its name."""
    return Path(core_accel.__file__).with_name(f"_agent{EXTENSION_SUFFIXES[0]}")


def available() -> str | None:
    """Why there can be no agent here; None: there can."""
    if os.uname().machine != "x86_64":
        return f"the agent is made for x86-64, this is {os.uname().machine}"
    if not loader_file().is_file():
        return "the loader was not built"
    return None


class Agent:
    """What one VM tells the agents in its guests, in the directory `l` of its shadow directory."""

    def __init__(self, shadow: bytes, cache: bytes) -> None:
        """`shadow`: the VM's directory; `cache`: where patched copies lie, absolute.

        **Errors** OSError: no such directory, no room.
        """
        self.shadow = shadow
        private = os.geteuid() != 0
        links = shadow + b"/l"
        os.mkdir(links, 0o700 if private else 0o711)
        os.chmod(links, 0o700 if private else 0o711)
        first = links + b"/00"
        mode = 0o700 if private else 0o755
        with open(
            os.open(first, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb"
        ) as file:
            file.write(loader_file().read_bytes())
        os.chmod(first, mode)
        for number in range(1, MAILBOXES):
            os.link(first, links + b"/%02d" % number)
        mode = 0o600 if private else 0o666
        self.area = agentarea.Area(shadow, shadow + b"/", cache, AGENT_KINDS, mode)

    def set_views(self, views: Iterable[View]) -> None:
        """Tell the views of all processes."""
        self.area.set_views([view.parts() for view in views], ODD_NAMES)

    def load(
        self, pid: int, program: bytes, name: bytes, front: Sequence[bytes] = ()
    ) -> bytes | None:
        """What process `pid` is to execute so that `program` runs with the agent.

        `program` is the host's; `name`: what was executed; `front` takes the place of argv[0] (a
        script's words). None: it is better executed as it is.
        """
        if not runnable(program):
            return None
        return self.area.put(pid, program, name, front)


def shares_memory(pid: int) -> bool:
    """Has a process its memory in common with its parent or a child, as after vfork(2)? Its agent
    is then theirs, too."""
    try:
        fields = status(pid)
        tgid, relatives = int(fields[b"Tgid"]), [int(fields[b"PPid"])]
        for tid in os.listdir(f"/proc/{tgid}/task"):
            with open(f"/proc/{tgid}/task/{tid}/children", "rb") as file:
                relatives += map(int, file.read().split())
    except (OSError, KeyError):
        return True
    return any(launch.same_memory(tgid, other) for other in relatives if other)


def runnable(path: bytes) -> bool:
    """Is this a 64-bit program that the loader can open and we may execute?"""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        if os.fstatvfs(fd).f_flag & os.ST_NOEXEC:
            return False
        if not os.access(path, os.X_OK, effective_ids=True):
            return False
        head = os.pread(fd, 64, 0)
    except OSError:
        return False
    finally:
        os.close(fd)
    if len(head) < 64 or head[:6] != b"\x7fELF\x02\x01":
        return False
    kind, machine = struct.unpack_from("<HH", head, 16)
    return kind in (2, 3) and machine == EM_X86_64


__all__ = ["Agent", "available", "loader_file", "runnable", "shares_memory"]
