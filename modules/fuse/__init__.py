"""Mounts classes written for fusepy or mfusepy; no libfuse, no /dev/fuse, no import of either.

    umvm mount -t fusepy ./memory.py:Memory /mnt
    umvm mount -t fusepy ./loopback.py:Loopback /mnt -o root=/srv,ro
    umvm mount -t fusepy package.module:Class /mnt -o arg.uid=7

The source is FILE.py or a module's name, then `:` and a class, a function that returns an object,
or an object; without it the only Operations class that the file defines. `import fuse`, `fusepy`
and `mfusepy` give the file umvm's stand-in (umvm.standin). The types `fusepy` and `fuse` are the
same.

Options that FUSE knows are those of mount.fuse(8), and `nothreads`, `raw_fi`, `debug` and
`encoding=`, which fusepy has as arguments of FUSE(). Every other option is an argument of the class
by its name; `arg.NAME=VALUE` is one for certain, where FUSE has an option of that name too. The
value is converted to the type of the parameter's default or annotation: int (also 0x…, 0o…), float,
bool (yes, no, true, false, 1, 0; the option alone is true), None ("none"), bytes, str.

Programs that call FUSE() themselves are not for this: run them in the VM. What they serve arrives
as `RemoteOperations`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from umvm.modules.fuse.arguments import arguments
from umvm.modules.fuse.one_thread import OneThread
from umvm.modules.fuse.program import find

from umvm.errors import UmvmError
from umvm.interfaces import fuse_options
from umvm.interfaces.filesystem import FileSystem
from umvm.interfaces.fuse_adapter import FuseAdapter
from umvm.interfaces.fuse_calls import here
from umvm.standin.remote import RemoteOperations

__all__ = ["FILESYSTEMS", "FuseAdapter", "RemoteOperations", "mount"]


def mount(source: str, options: dict[str, str]) -> FileSystem:
    """Make the file system of one mount: find the class, make an object, wrap it.

    **Errors** UmvmError: there is no such file or class, it can't be made, or an option is wrong.
    """
    known, rest = fuse_options.parse(options)
    thread = OneThread() if known.nothreads else None
    try:
        operations = (thread or here)(_operations, source, rest)
    except BaseException:
        if thread is not None:
            thread.close()
        raise
    if not known.fsname:
        known = known._replace(fsname=type(operations).__name__)
    fs = _ClassMount(operations, known)
    if thread is not None:
        fs.carry, fs.end_thread = thread, thread.close
    return fs


def _operations(source: str, options: dict[str, str]) -> Any:
    """Find the class, and make an object of it with `options` as arguments."""
    maker = find(source)
    made = hasattr(maker, "getattr") and not isinstance(maker, type)
    if not made and callable(maker):
        given = arguments(maker, options)
        try:
            return maker(**given)
        except (OSError, UmvmError):
            raise
        except (Exception, SystemExit) as error:
            raise UmvmError(f"{source}: {type(error).__name__}: {error}") from error
    fuse_options.refuse_unknown(options)
    return maker


class _ClassMount(FuseAdapter):
    """A class's file system, whose thread ends with it."""

    end_thread: Callable[[], None] | None = None

    def destroy(self) -> None:
        super().destroy()
        if self.end_thread is not None:
            self.end_thread()
            self.end_thread, self.carry = None, here


FILESYSTEMS = {"fusepy": mount, "fuse": mount}
