"""Who owns /proc/PID, as stat(2) and its relatives tell, where guests have other ids.

After umvm/syscalls/owners.py has answered: what it told is corrected for files on /proc.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

from umvm.guest.procidentity import owner
from umvm.interfaces.identity import Identity
from umvm.syscalls.context import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_SYMLINK_NOFOLLOW,
    DONE,
    Reply,
    Request,
    locate,
    signed,
)  # fmt: skip
from umvm.syscalls.hostfiles import CALLS, Handler, proc_device

if TYPE_CHECKING:
    from umvm.vm import VirtualMachine

STATX = 332
_DEV, _OWNER, _MODE = 0, 28, 24
_STATX_DEV, _STATX_OWNER, _STATX_MODE = 136, 20, 28
"""Where things are in struct stat and struct statx."""


def _path(vm: VirtualMachine, req: Request) -> bytes | None:
    """The canonical path of the file that the call was about; None: it has none."""
    a = req.args
    dirfd, addr, flags = {
        4: (AT_FDCWD, a[0], 0),
        5: (signed(a[0]), 0, AT_EMPTY_PATH),
        6: (AT_FDCWD, a[0], AT_SYMLINK_NOFOLLOW),
        262: (signed(a[0]), a[1], a[3]),
        STATX: (signed(a[0]), a[1], a[2]),
    }[req.nr]
    path = req.string(addr) if addr else b""
    if path:
        return locate(vm, req, dirfd, path, not flags & AT_SYMLINK_NOFOLLOW).path
    what = b"cwd" if dirfd == AT_FDCWD else b"fd/%d" % dirfd
    return os.readlink(b"/proc/%d/%s" % (req.tid, what))


def _correct(vm: VirtualMachine, req: Request, out: int, dev: int, at: int, mode_at: int) -> None:
    if req.nr == STATX:
        device = os.makedev(*struct.unpack("=II", req.read(out + dev, 8)))
    else:
        (device,) = struct.unpack("=Q", req.read(out + dev, 8))
    if device != proc_device():
        return
    try:
        path = _path(vm, req)
    except OSError:
        return  # it is gone
    (mode,) = struct.unpack("=H", req.read(out + mode_at, 2))
    ids = owner(vm, path, mode) if path is not None else None
    if ids is not None:
        req.write(out + at, struct.pack("=II", *ids))


def _after(first: Handler, out: int, places: tuple[int, int, int]) -> Handler:
    def answer(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
        reply = first(vm, req, identity)
        if reply is DONE:
            _correct(vm, req, req.args[out], *places)
        return reply

    return answer


_PLAIN = (_DEV, _OWNER, _MODE)
CALLS["stat"] = _after(CALLS["stat"], 1, _PLAIN)
CALLS["lstat"] = _after(CALLS["lstat"], 1, _PLAIN)
CALLS["fstat"] = _after(CALLS["fstat"], 1, _PLAIN)
CALLS["newfstatat"] = _after(CALLS["newfstatat"], 2, _PLAIN)
CALLS["statx"] = _after(CALLS["statx"], 4, (_STATX_DEV, _STATX_OWNER, _STATX_MODE))
