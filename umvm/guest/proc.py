"""/proc as guests should see it: links and tables that would show placeholders, or lack mounts."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from core_accel.engine import Engine
from core_accel.lazy import pattern
from core_accel.request import Reply
from umvm.guest import mounttext, oomscore, procidentity
from umvm.guest.loaded import program_behind
from umvm.guest.mounttext import mount_id
from umvm.guest.spaces import DELETED, Space
from umvm.interfaces.filesystem import Attr

if TYPE_CHECKING:
    from umvm.vm import VirtualMachine

_TABLE = pattern(rb"/proc/(\d+)(?:/task/\d+)?/(mounts|mountinfo|mountstats|maps|smaps|numa_maps)")
_NET = pattern(rb"/proc/(\d+)(?:/task/\d+)?/net/([a-z0-9_]+)")
_FDINFO = pattern(rb"/proc/(\d+)(?:/task/\d+)?/fdinfo/(\d+)")
_LINK = pattern(rb"/proc/(\d+)/(?:task/\d+/)?(cwd|root|exe|fd/(\d+)|map_files/[^/]+)")
_NAME_COLUMN = 73


class Proc:
    """Answers for one VM. Paths are canonical (`/proc/PID/…`, never `/proc/self`)."""

    def __init__(self, vm: VirtualMachine) -> None:
        self._vm = vm
        self._shadow = vm.shadow.path + b"/"
        self.scores = oomscore.OomScores(vm)
        self.texts: dict[bytes, Callable[[], bytes]] = {}
        """Files by path, for modules; `VirtualMachine.show_in_proc` adds them."""
        self.net: Callable[[int, str], bytes | None] | None = None
        """The files of /proc/PID/net, by PID and name."""

    def readlink(self, path: bytes, tid: int) -> bytes | None:
        """The text of a link for a thread that reads it; None: the kernel's is right."""
        if not path.startswith(b"/proc/"):
            return None
        try:
            text = os.readlink(path)
        except OSError:
            return None
        space = self._vm.spaces.of(tid)
        found = _LINK.fullmatch(path)
        if found is None or not text.startswith(b"/"):
            return None
        if found[2] == b"root" and self._vm.spaces.several:
            return space.label(self._vm.spaces.of(int(found[1])).root)
        if space.plain and not text.startswith(self._shadow):
            return None
        text = program_behind(path, text)
        if self._vm.named(text) is None and not space.plain and found[2] != b"exe":
            fd = int(found[3]) if found[3] else None
            deleted = text.endswith(DELETED) and not os.path.lexists(text)
            host = text[: -len(DELETED)] if deleted else text
            place = self._vm.spaces.place(space, int(found[1]), fd, host)[0]
            return space.label(place) + (DELETED if deleted else b"")
        return self._vm.shown(text, space)

    def open(self, path: bytes, flags: int, tid: int) -> Reply | None:
        """Open a table that has to be changed, read-only; None: the kernel opens it. **Errors**
        EACCES: another user's, which thread `tid` may not see."""
        if not path.startswith(b"/proc/"):
            return None
        if not flags & os.O_PATH:
            procidentity.check_private(self._vm, tid, path)
        if path.endswith(oomscore.NAME) and self._vm.identity is not None:
            return self.scores.open(path, flags)
        if flags & (os.O_ACCMODE | os.O_PATH):
            return None
        text = self._text(path)
        if text is None:
            return None
        memfd = os.memfd_create(os.path.basename(path).decode(), os.MFD_CLOEXEC)
        try:
            with open(memfd, "wb", closefd=False) as file:
                file.write(text)
            fd = os.open(f"/proc/self/fd/{memfd}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(memfd)
        return Reply.fd(fd, bool(flags & os.O_CLOEXEC))

    def _text(self, path: bytes) -> bytes | None:
        given = self.texts.get(path)
        if given is not None:
            return given()
        found = _NET.fullmatch(path)
        if found is not None:
            return None if self.net is None else self.net(int(found[1]), os.fsdecode(found[2]))
        if self._vm.identity is not None:
            shown = procidentity.text(self._vm, path)
            if shown is not None:
                return shown
        fdinfo = _FDINFO.fullmatch(path)
        if fdinfo is not None:
            return self._fdinfo(path, int(fdinfo[1]), int(fdinfo[2]))
        found = _TABLE.fullmatch(path)
        if found is None:
            return None
        try:
            with open(path, "rb") as file:
                text = file.read()
        except OSError:
            return None
        kind = found[2]
        if kind in (b"maps", b"smaps", b"numa_maps"):
            space = self._vm.spaces.of(int(found[1]))
            engine = self._vm.engine
            shown = text if isinstance(engine, Engine) else engine.unpatched(text)
            shown = shown if space.plain else self._seen(shown, space)
            shown = self._unshadow(shown) if self._shadow in shown else shown
            return shown if shown != text else None
        shown = mounttext.table(kind, text, self._vm.spaces.of(int(found[1])))
        return shown if shown != text else None

    def _seen(self, text: bytes, space: Space) -> bytes:
        """The names of mapped files as they are in a space, seen from its root."""

        def name(found: re.Match[bytes]) -> bytes:
            path: bytes = found[0]
            served = path.startswith(self._shadow) and self._vm.named(path) is not None
            return path if served else self._vm.shown(path, space)

        return re.sub(rb"(?m)(?<= )/.*$", name, text)

    def _unshadow(self, text: bytes) -> bytes:
        place = re.escape(self._shadow)
        text = re.sub(rb"(?m)^(\S+ \S+ \S+) \S+ \d+ +(%s.*)$" % place, self._map_line, text)
        # numa_maps ends a name at a blank
        return re.sub(rb"(?<=file=)%s\S*" % place, self._numa_name, text)

    def _map_line(self, found: re.Match[bytes]) -> bytes:
        """A line of proc_pid_maps(5), with the name at its usual column."""
        from umvm.syscalls.context import inode  # here, as few guests ask

        named = self._vm.named(found[2])
        if named is None:
            return found[0]
        dev = named.mount.dev
        try:
            attr = named.last if named.deleted else named.mount.fs.getattr(named.path)
        except OSError:
            attr = named.last
        number = inode(named.mount, named.path, attr or Attr(0))
        start = b"%s %02x:%02x %d " % (found[1], os.major(dev), os.minor(dev), number)
        return start.ljust(_NAME_COLUMN) + self._vm.shown(found[2])

    def _numa_name(self, found: re.Match[bytes]) -> bytes:
        name = found[0].replace(b"\\040", b" ")
        return self._vm.shown(name).replace(b" ", b"\\040")

    def _fdinfo(self, path: bytes, pid: int, fd: int) -> bytes | None:
        file = self._vm.files.of(pid, fd)
        if file is None:
            return None
        try:
            with open(path, "rb") as host:
                text = host.read()
        except OSError:
            return None
        text = re.sub(rb"(?m)^pos:\t.*$", b"pos:\t%d" % file.offset, text)
        text = re.sub(rb"(?m)^flags:\t.*$", b"flags:\t0%o" % (file.flags | 0o100000), text)
        return re.sub(rb"(?m)^mnt_id:\t.*$", b"mnt_id:\t%d" % mount_id(file.mount), text)


__all__ = ["Proc", "mount_id"]
