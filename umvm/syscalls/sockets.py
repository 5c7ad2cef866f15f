"""AF_UNIX socket names: those on a mount are placeholders in the shadow directory.

The supervisor binds (the socket's owner stays the guest), the guest itself connects and sends, with
the address changed, so that blocking and credentials are its own.
**Source**: unix(7), net/unix/af_unix.c.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
from typing import TYPE_CHECKING

from umvm.guest.mounts import Where
from umvm.syscalls import readonly
from umvm.syscalls.context import (
    AT_FDCWD,
    DONE,
    Reply,
    Request,
    check,
    enter,
    fail,
    handles,
    host_path,
    locate,
    parent,
    signed,
    writable,
)  # fmt: skip
from umvm.vfs.permission import check_create

if TYPE_CHECKING:
    from umvm.vm import VirtualMachine

SUN_PATH = 108
MSGHDR = struct.Struct("<QIIQQQQQ")  # struct msghdr, 56 bytes: name, its size, padding, …
MMSGHDR = 64
"""Size of struct mmsghdr: a msghdr, the number of bytes that were sent, padding."""
_AT_A_TIME = 3
"""Messages with their addresses that fit below a guest's stack."""


def _name(req: Request, addr: int, size: int) -> bytes | None:
    """The path in a socket address, or the abstract name with the NUL before it; None if it has
    another family or is unnamed."""
    if size < 3 or size > 2 + SUN_PATH or not addr:
        return None
    data = req.read(addr, size)
    if struct.unpack_from("<H", data)[0] != socket.AF_UNIX:
        return None
    return data[2:].split(b"\0", 1)[0] or data[2:]


def _abstract(vm: VirtualMachine, name: bytes) -> bytes | None:
    """The address to use for an abstract name; None: as it is."""
    if vm.abstract is None:
        return None
    return struct.pack("<H", socket.AF_UNIX) + b"\0" + vm.abstract.outside(name[1:])


def _pack(path: bytes) -> bytes:
    if len(path) >= SUN_PATH:
        raise fail(errno.ENAMETOOLONG)
    return struct.pack("<H", socket.AF_UNIX) + path + b"\0"


def _pack_host(vm: VirtualMachine, where: Where, given: bytes, bound: bool = False) -> bytes:
    """The address for a path of the host, however long it is."""
    path = host_path(where)
    return _pack(path if len(path) < SUN_PATH else vm.specials.short_path(path, given, bound))


def unix_copy(req: Request, fd: int) -> socket.socket | None:
    """A copy of a guest's AF_UNIX socket; None: it isn't one, as the kernel will say."""
    try:
        number = req.getfd(fd)
    except OSError:
        return None
    try:
        copy = socket.socket(fileno=number)
    except OSError:
        os.close(number)
        return None
    if copy.family == socket.AF_UNIX:
        return copy
    copy.close()
    return None


@handles("bind")
def sys_bind(vm: VirtualMachine, req: Request) -> Reply | None:
    """bind(2)."""
    name = _name(req, req.args[1], signed(req.args[2]))
    copy = None if name is None else unix_copy(req, signed(req.args[0]))
    if name is None or copy is None:
        return None
    with copy:
        if name[0] == 0:
            private = _abstract(vm, name)
            return None if private is None else req.rewrite({1: (private, []), 2: len(private)})
        where = locate(vm, req, AT_FDCWD, name, False, True)
        if where.mount is None:
            if where.bind is not None and where.bind.read_only:
                readonly.check(req.nr, where)
            if not where.changed:
                return None
            address = _pack_host(vm, where, name, True)
            return req.rewrite({1: address, 2: len(address)})
        mount, inside = where.mount, where.inside
        if copy.getsockname():
            raise fail(errno.EINVAL)
        if not where.missing:
            raise fail(errno.EADDRINUSE)
        if where.slash:
            raise fail(errno.ENOENT)
        caller = enter(vm, req)
        writable(mount)
        check_create(mount, mount.fs.getattr(parent(inside)), caller)
        mount.fs.mknod(inside, stat.S_IFSOCK | 0o777 & ~caller.umask, 0)
        mount.forget()
        try:
            placeholder = vm.specials.new(mount, inside, name)
            copy.bind(placeholder)
            os.chmod(placeholder, 0o777)
        except OSError:
            mount.fs.unlink(inside)
            raise
    return DONE


def _destination(vm: VirtualMachine, req: Request, name: bytes) -> bytes | None:
    """The address to use for a name that a guest wants to reach; None: as it is."""
    if name[0] == 0:
        return _abstract(vm, name)
    where: Where = locate(vm, req, AT_FDCWD, name)
    if where.mount is None:
        return _pack_host(vm, where, name) if where.changed else None
    caller = enter(vm, req)
    attr = where.attr or where.mount.fs.getattr(where.inside)
    check(where.mount, where.inside, caller, 2)
    if not stat.S_ISSOCK(attr.mode):
        raise fail(errno.ECONNREFUSED)
    placeholder = vm.specials.find(where.mount, where.inside)
    if placeholder is None:
        raise fail(errno.ECONNREFUSED)
    return _pack(placeholder)


def _send_to(vm: VirtualMachine, req: Request, addr_index: int) -> Reply | None:
    name = _name(req, req.args[addr_index], signed(req.args[addr_index + 1]))
    copy = None if name is None else unix_copy(req, signed(req.args[0]))
    if name is None or copy is None:
        return None
    copy.close()
    address = _destination(vm, req, name)
    if address is None:
        return None
    return req.rewrite({addr_index: (address, []), addr_index + 1: len(address)})


@handles("connect")
def sys_connect(vm: VirtualMachine, req: Request) -> Reply | None:
    """connect(2)."""
    return _send_to(vm, req, 1)


@handles("sendto")
def sys_sendto(vm: VirtualMachine, req: Request) -> Reply | None:
    """sendto(2) with an address."""
    return _send_to(vm, req, 4)


@handles("sendmsg")
def sys_sendmsg(vm: VirtualMachine, req: Request) -> Reply | None:
    """sendmsg(2): a new msghdr with the other address, if it has one."""
    head = req.peek(req.args[1], MSGHDR.size)
    if len(head) < MSGHDR.size:
        return None
    addr, size, *_ = MSGHDR.unpack(head)
    name = _name(req, addr, size)
    address = None if name is None else _destination(vm, req, name)
    if address is None:
        return None
    block = struct.pack("<QI", MSGHDR.size, len(address)) + head[12:] + address
    return req.rewrite({1: (block, [0])})


@handles("sendmmsg")
def sys_sendmmsg(vm: VirtualMachine, req: Request) -> Reply | None:
    """sendmmsg(2): a few messages at a time where an address has to be changed; callers go on."""
    heads: list[bytes] = []
    addresses: list[bytes | None] = []
    wanted = min(req.args[2] & 0xFFFFFFFF, 1024)
    for index in range(wanted):
        head = req.peek(req.args[1] + MMSGHDR * index, MMSGHDR)
        if len(head) < MMSGHDR:
            break
        addr, size, *_ = MSGHDR.unpack_from(head)
        name = _name(req, addr, size)
        try:
            addresses.append(None if name is None else _destination(vm, req, name))
        except OSError:
            if not index:
                raise
            break  # what comes before is sent
        heads.append(head)
    if any(addresses):
        return _send_several(req, heads[:_AT_A_TIME], addresses[:_AT_A_TIME])
    return req.rewrite({2: len(heads)}) if heads and len(heads) < wanted else None


def _send_several(req: Request, heads: list[bytes], addresses: list[bytes | None]) -> Reply:
    block, texts, offsets = bytearray(b"".join(heads)), b"", []
    for index, address in enumerate(addresses):
        at = MMSGHDR * index
        _, _, _, vector, count, *_ = MSGHDR.unpack_from(block, at)
        # the kernel tells the lengths to the copy; a datagram goes as a whole or not at all
        parts = struct.unpack(f"<{2 * min(count, 1024)}Q", req.read(vector, 16 * min(count, 1024)))
        req.write(req.args[1] + at + MSGHDR.size, struct.pack("<I", sum(parts[1::2]) & 0xFFFFFFFF))
        if address is not None:
            offsets.append(at)
            struct.pack_into("<QI", block, at, len(block) + len(texts), len(address))
            texts += address
    return req.rewrite({1: (bytes(block) + texts, offsets), 2: len(heads)})


def _name_given(vm: VirtualMachine, req: Request, name: bytes) -> bytes | None:
    """The name by which a guest knows a socket; None: the kernel's is right."""
    given = vm.specials.given_name(name)
    space = vm.spaces.of(req.tid)
    if given is not None or space.plain or not name.startswith(b"/"):
        return given
    return space.label(space.view.shown(name)[0])


def _answer_name(vm: VirtualMachine, req: Request, peer: bool) -> Reply | None:
    copy = unix_copy(req, signed(req.args[0]))
    if copy is None:
        return None
    with copy:
        try:
            name = copy.getpeername() if peer else copy.getsockname()
        except OSError:
            return None
    address = _given_address(vm, req, name)
    if address is None:
        return None
    (room,) = struct.unpack("<i", req.read(req.args[2], 4))
    if room < 0:
        raise fail(errno.EINVAL)
    req.write(req.args[1], address[:room])
    req.write(req.args[2], struct.pack("<i", len(address)))
    return DONE


def _given_address(vm: VirtualMachine, req: Request, name: str | bytes) -> bytes | None:
    """The address that a guest gave, for one of the host's; None: the same."""
    if isinstance(name, str):
        given = _name_given(vm, req, os.fsencode(name)) if name else None
        return None if given is None else _pack(given)
    if vm.abstract is None or name[:1] != b"\0":
        return None
    return struct.pack("<H", socket.AF_UNIX) + b"\0" + vm.abstract.inside(name[1:])


@handles("getsockname")
def sys_getsockname(vm: VirtualMachine, req: Request) -> Reply | None:
    """getsockname(2): the name that the guest gave."""
    return _answer_name(vm, req, False)


@handles("getpeername")
def sys_getpeername(vm: VirtualMachine, req: Request) -> Reply | None:
    """getpeername(2): the name that the other guest gave."""
    return _answer_name(vm, req, True)
