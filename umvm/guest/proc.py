"""/proc as guests should see it: links and tables that would show placeholders, or lack mounts."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from core_accel.engine import Engine
from core_accel.request import Reply
from umvm.guest import oomscore, procidentity
from umvm.guest.loaded import program_behind
from umvm.interfaces.filesystem import Attr

if TYPE_CHECKING:
    from umvm.guest.mounts import Mount
    from umvm.vm import VirtualMachine

_TABLE = re.compile(
    rb"/proc/(\d+)(?:/task/\d+)?/(mounts|mountinfo|mountstats|maps|smaps|numa_maps)"
)
_FDINFO = re.compile(rb"/proc/(\d+)(?:/task/\d+)?/fdinfo/(\d+)")
_NAME_COLUMN = 73
_ESCAPED = re.compile(rb"[\\ \t\n#]")


class Proc:
    """Answers for one VM. Paths are canonical (`/proc/PID/…`, never `/proc/self`)."""

    def __init__(self, vm: VirtualMachine) -> None:
        self._vm = vm
        self._shadow = vm.shadow.path + b"/"
        self.scores = oomscore.OomScores(vm)
        self.texts: dict[bytes, Callable[[], bytes]] = {}
        """Files by path, for modules; `VirtualMachine.show_in_proc` adds them."""

    def readlink(self, path: bytes) -> bytes | None:
        """The text of a link that would read as a placeholder; None: the kernel's is right."""
        if not path.startswith(b"/proc/"):
            return None
        try:
            text = os.readlink(path)
        except OSError:
            return None
        if not text.startswith(self._shadow):
            return None
        return self._vm.shown(program_behind(path, text))

    def open(self, path: bytes, flags: int) -> Reply | None:
        """Open a table that has to be changed, read-only; None: the kernel opens it."""
        if not path.startswith(b"/proc/"):
            return None
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
            shown = self._unshadow(text) if self._shadow in text else text
            if not isinstance(self._vm.engine, Engine):
                shown = self._vm.engine.unpatched(shown)
            return shown if shown != text else None
        lines = {b"mounts": _mounts_line, b"mountinfo": _mountinfo_line, b"mountstats": _stats_line}
        extra = [lines[kind](mount) for mount in list(self._vm.mount_table.all)]
        return text + b"".join(extra) if extra else None

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


def mount_id(mount: Mount) -> int:
    """The id that mountinfo and statx show: above those that the kernel uses."""
    return 100000 + mount.ident


def _escape(text: bytes) -> bytes:
    return _ESCAPED.sub(lambda found: b"\\%03o" % found[0][0], text)


def _source(mount: Mount) -> bytes:
    return _escape(os.fsencode(mount.source)) or b"none"


def _type(mount: Mount) -> bytes:
    name = mount.fs.subtype or mount.fstype
    return b"fuse" if name == "fuse" else b"fuse." + _escape(os.fsencode(name))


def _options(mount: Mount) -> bytes:
    kept = [name for name in ("nosuid", "nodev", "noexec", "noatime") if name in mount.options]
    return ",".join(["ro" if mount.read_only else "rw", *kept]).encode()


def _mounts_line(mount: Mount) -> bytes:
    fields = (_source(mount), _escape(mount.point), _type(mount), _options(mount), b"0", b"0")
    return b" ".join(fields) + b"\n"


def _mountinfo_line(mount: Mount) -> bytes:
    """proc_pid_mountinfo(5): id, parent, device, root, point, options - type, source, options."""
    device = b"%d:%d" % (os.major(mount.dev), os.minor(mount.dev))
    own = b"ro" if mount.read_only else b"rw"
    return b"%d 1 %s / %s %s - %s %s %s\n" % (
        mount_id(mount), device, _escape(mount.point), _options(mount), _type(mount),
        _source(mount), own,
    )  # fmt: skip


def _stats_line(mount: Mount) -> bytes:
    return b"device %s mounted on %s with fstype %s\n" % (
        _source(mount), _escape(mount.point), _type(mount),
    )  # fmt: skip
