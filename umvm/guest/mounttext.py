"""The lines of /proc/PID/mounts, mountinfo and mountstats: the host's and the VM's mounts.

A process sees those below its root, with paths from there (proc_pid_mountinfo(5)).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from core_accel.lazy import pattern

if TYPE_CHECKING:
    from umvm.guest.mounts import Mount
    from umvm.guest.spaces import Space

_ESCAPED = pattern(rb"[\\ \t\n#]")
_CODE = pattern(rb"\\([0-7]{3})")
_POINT = {b"mounts": 1, b"mountinfo": 4, b"mountstats": 4}
"""Which word of a line is the mount point."""
_KEPT = ("nosuid", "nodev", "noexec", "noatime")


class _Under(NamedTuple):
    """The host's mount that a bind mount shows a part of."""

    device: bytes
    root: bytes
    point: bytes
    fstype: bytes
    source: bytes
    options: bytes


def mount_id(mount: Mount) -> int:
    """The id that mountinfo and statx show: above those that the kernel uses."""
    return 100000 + mount.ident


def table(kind: bytes, text: bytes, space: Space) -> bytes:
    """The host's `text` as a process of `space` is to read it."""
    if not space.plain:
        text = b"".join(_host_line(line, _POINT[kind], space) for line in text.splitlines(True))
    mounts = [m for m in list(space.table.all) if not m.glue]
    if not mounts:
        return text
    hosts = _host_mounts() if any(m.bind is not None for m in mounts) else []
    writer = {b"mounts": _mounts_line, b"mountinfo": _mountinfo_line, b"mountstats": _stats_line}
    for mount in mounts:
        point = space.inner(mount.point)
        if point is not None:
            under = None if mount.bind is None else _under(hosts, mount.bind)
            text += writer[kind](mount, _escape(point), under)
    return text


def _host_line(line: bytes, index: int, space: Space) -> bytes:
    """A line of the host's with the mount point as it is seen from the root; empty: it isn't."""
    words = line.split(b" ")
    if len(words) <= index:
        return line
    path, _, places = space.view.shown(_plain(words[index].rstrip(b"\n")))
    inner = space.inner(path)
    if inner is None or not places:
        return b""
    words[index] = _escape(inner) + (b"\n" if words[index].endswith(b"\n") else b"")
    return b" ".join(words)


def _host_mounts() -> list[_Under]:
    found = []
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            before, _, after = line.rstrip(b"\n").partition(b" - ")
            words, more = before.split(b" "), after.split(b" ")
            root, point = _plain(words[3]), _plain(words[4])
            found.append(_Under(words[2], root, point, *[*more, b"", b"", b""][:3]))
    return found


def _under(hosts: list[_Under], path: bytes) -> _Under:
    """The mount that a path of the host is in, its root that of the path."""
    best = _Under(b"0:0", b"/", b"/", b"none", b"none", b"rw")
    for host in hosts:
        inside = path == host.point or path.startswith(host.point.rstrip(b"/") + b"/")
        if inside and len(host.point) >= len(best.point):
            best = host
    rest = path[len(best.point.rstrip(b"/")) :]
    return best._replace(root=(best.root.rstrip(b"/") + rest).rstrip(b"/") or b"/")


def _escape(text: bytes) -> bytes:
    return _ESCAPED.sub(lambda found: b"\\%03o" % found[0][0], text)


def _plain(text: bytes) -> bytes:
    return _CODE.sub(lambda found: bytes((int(found[1], 8),)), text)


def _source(mount: Mount, under: _Under | None) -> bytes:
    if under is not None:
        return under.source
    return _escape(os.fsencode(mount.source)) or b"none"


def _type(mount: Mount, under: _Under | None) -> bytes:
    if under is not None:
        return under.fstype
    name = mount.fs.subtype or mount.fstype
    return b"fuse" if name == "fuse" else b"fuse." + _escape(os.fsencode(name))


def _options(mount: Mount) -> bytes:
    kept = [name for name in _KEPT if name in mount.options]
    return ",".join(["ro" if mount.read_only else "rw", *kept]).encode()


def _mounts_line(mount: Mount, point: bytes, under: _Under | None) -> bytes:
    fields = (_source(mount, under), point, _type(mount, under), _options(mount), b"0", b"0")
    return b" ".join(fields) + b"\n"


def _mountinfo_line(mount: Mount, point: bytes, under: _Under | None) -> bytes:
    """proc_pid_mountinfo(5): id, parent, device, root, point, options - type, source, options."""
    device = b"%d:%d" % (os.major(mount.dev), os.minor(mount.dev))
    root, own = b"/", b"ro" if mount.read_only else b"rw"
    if under is not None:
        device, root, own = under.device, _escape(under.root), under.options
    return b"%d 1 %s %s %s %s - %s %s %s\n" % (
        mount_id(mount), device, root, point, _options(mount), _type(mount, under),
        _source(mount, under), own,
    )  # fmt: skip


def _stats_line(mount: Mount, point: bytes, under: _Under | None) -> bytes:
    return b"device %s mounted on %s with fstype %s\n" % (
        _source(mount, under), point, _type(mount, under),
    )  # fmt: skip
