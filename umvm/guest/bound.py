"""Bind mounts: files of the host at another path of the view. They aren't served; see `spaces`."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from typing import TYPE_CHECKING

from umvm.errors import UmvmError
from umvm.guest.mounts import Mount, MountTable, Where, below
from umvm.guest.spaces import Space
from umvm.interfaces.filesystem import Attr, FileHandle, FileSystem

if TYPE_CHECKING:
    from umvm.vm import VirtualMachine

_OPTIONS = frozenset("bind rbind defaults rw ro suid nosuid dev nodev exec noexec".split())


class Bound(FileSystem):
    """Stands for the file system that a bind mount hasn't got; only its root is asked about."""

    def __init__(self, directory: bool) -> None:
        self._mode = (stat.S_IFDIR if directory else stat.S_IFREG) | 0o755

    def getattr(self, path: bytes, fh: FileHandle = None) -> Attr:
        """A directory, or something else."""
        return Attr(self._mode)


def bind(
    vm: VirtualMachine,
    source: bytes,
    target: bytes,
    options: dict[str, str],
    space: Space | None = None,
) -> Mount:
    """Show a file or directory of the host at another path; both are seen from the space's root.

    **Errors** OSError: ENOENT…; ENOTDIR: only one of them is a directory; EINVAL: the source is in
    a served file system. UmvmError: an option.
    """
    try:
        found: Where = vm.walk(source, space)
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fsdecode(source)) from None
    return bind_found(vm, found, os.fsdecode(source), target, options, space)


def bind_found(
    vm: VirtualMachine,
    found: Where,
    source: str,
    target: bytes,
    options: dict[str, str],
    space: Space | None,
    glue: bool = False,
) -> Mount:
    """As `bind`, of what a walk led to. `glue`: a missing target is made to appear."""
    unknown = sorted(set(options) - _OPTIONS)
    if unknown:
        raise UmvmError(f"bind: unknown option {unknown[0]!r}")
    if found.mount is not None:
        raise OSError(errno.EINVAL, "not a file of the host", source)
    directory = stat.S_ISDIR(os.stat(found.host).st_mode)
    if glue:
        _glue(vm, target, directory, space)
    own = {key: value for key, value in options.items() if key not in ("bind", "rbind")}
    return vm.add_mount(Bound(directory), "bind", source, target, own, "", space, found.host)


def _glue(vm: VirtualMachine, target: bytes, directory: bool, space: Space | None) -> None:
    """Mount an empty tree that has the target on the first of its names that is missing.

    The directory of the host that it seems to be in stays as it is (and doesn't list it).
    """
    parts = [part for part in target.split(b"/") if part]
    for count in range(1, len(parts) + 1):
        place = b"/" + b"/".join(parts[:count])
        try:
            vm.walk(place, space)
        except FileNotFoundError:
            tree = vm.shadow.tree(parts[count:], directory)
            stand_in = Bound(directory or count < len(parts))
            vm.add_mount(stand_in, "bind", "none", place, {}, "", space, tree, True)
            return


def users(vm: VirtualMachine, mount: Mount, tables: Sequence[MountTable]) -> list[int]:
    """Processes that stand in a mount, or (a bind mount) have its files open."""
    found = []
    for pid in vm.guest_pids():
        try:
            space = vm.spaces.of(pid)
            if space.table in tables and _uses(vm, pid, space, mount):
                found.append(pid)
        except OSError:
            continue
    return found


def _uses(vm: VirtualMachine, pid: int, space: Space, mount: Mount) -> bool:
    link = vm.procs.cwd_link(pid)
    if mount.bind is None:
        named = vm.files.named(link)
        return named is not None and named.mount is mount
    if space.root == mount.point or vm.spaces.place(space, pid, None, link)[1] == mount.ident:
        return True
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            link = os.readlink(b"/proc/%d/fd/%d" % (pid, int(name)))
            if not below(mount.bind, link):
                continue
            if vm.spaces.place(space, pid, int(name), link)[1] == mount.ident:
                return True
        except OSError:
            continue
    return False
