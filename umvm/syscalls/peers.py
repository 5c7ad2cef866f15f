"""Credentials on AF_UNIX sockets: SO_PEERCRED, SO_PEERGROUPS and SCM_CREDENTIALS.

The kernel knows the guests' real ids. What it says is translated by process: for SO_PEERCRED by
what the process had when it connected or listened (core_accel/creds.h). A socket with SO_PASSCRED
is read by the supervisor, which changes the control data. **Source**: unix(7), net/core/scm.c,
net/core/sock.c (sk_getsockopt) of Linux 6.18.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from umvm.guest.process import status
from umvm.guest.procidentity import is_guest
from umvm.interfaces.identity import (
    CAP_SETGID,
    CAP_SETUID,
    CAP_SYS_ADMIN,
    Credentials,
    Identity,
)
from umvm.syscalls.context import DONE, Reply, Request, fail, signed
from umvm.syscalls.identity import NONE, credentials, handles
from umvm.syscalls.waiting import ERESTARTSYS, wait

if TYPE_CHECKING:
    from umvm.vm import VirtualMachine

SO_PASSCRED, SO_PEERCRED, SO_PEERGROUPS = 16, 17, 59
SCM_RIGHTS, SCM_CREDENTIALS, SCM_PIDFD = 1, 2, 4
MSG_CMSG_CLOEXEC, MSG_CTRUNC = 0x40000000, 8
WATCH_MESSAGES = 1
"""`Engine.watch`: some socket tells its reader who sent."""
_UCRED = struct.Struct("=iII")
_HEADER = struct.Struct("=Qii")
"""struct cmsghdr: length with itself, level, type."""
_MSGHDR = struct.Struct("<QIIQQQQI4x")
_IOV_MAX = 1024
_CONTROL_MAX = 1 << 16
_SAID = 1024
"""Messages with explicit ids of one sender that may be on their way."""


def _of_process(vm: VirtualMachine, pid: int, identity: Identity) -> Credentials | None:
    """What a process has, if it is a living guest."""
    try:
        return credentials(vm, pid, identity) if pid and is_guest(status(pid)) else None
    except (OSError, KeyError):
        return None


def _peer(vm: VirtualMachine, pid: int, identity: Identity) -> Credentials | None:
    """What a guest had when it last made a socket known to others; None: it is no guest."""
    number = vm.engine.peer(pid)
    if number >= 0:
        known: Credentials | None = vm.marks.record(number).get(identity)
        return known or identity.first()
    return _of_process(vm, pid, identity)


@handles("getsockopt")
def sys_getsockopt(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """getsockopt(SO_PEERCRED) and (SO_PEERGROUPS). **Errors** EINVAL, ERANGE."""
    fd, level, option, out, size_at, _ = req.args
    if signed(level) != socket.SOL_SOCKET or option not in (SO_PEERCRED, SO_PEERGROUPS):
        return None
    with socket.socket(fileno=req.getfd(signed(fd))) as copy:
        if copy.family != socket.AF_UNIX:
            return None
        pid, uid, gid = _UCRED.unpack(copy.getsockopt(socket.SOL_SOCKET, SO_PEERCRED, 12))
    if uid == NONE:
        return None  # nobody is at the other end
    own = _peer(vm, pid, identity)
    (room,) = struct.unpack("=i", req.read(size_at, 4))
    if room < 0:
        raise fail(errno.EINVAL)
    if option == SO_PEERCRED:
        ids = (own.euid, own.egid) if own is not None else identity.owner(uid, gid)
        data = _UCRED.pack(pid, *ids)[:room]
    elif own is None:
        return None
    else:
        data = struct.pack(f"={len(own.groups)}I", *own.groups)
        if room < len(data):
            req.write(size_at, struct.pack("=i", len(data)))
            raise fail(errno.ERANGE)
    req.write(out, data)
    req.write(size_at, struct.pack("=i", len(data)))
    return DONE


# --- messages ------------------------------------------------------------------------------------


class Message(NamedTuple):
    """struct msghdr."""

    name: int
    name_size: int
    unused: int
    iov: int
    iov_count: int
    control: int
    control_size: int
    flags: int


def _message(req: Request) -> Message | None:
    head = req.peek(req.args[1], _MSGHDR.size)
    return Message(*_MSGHDR.unpack(head)) if len(head) == _MSGHDR.size else None


def _parts(control: bytes) -> list[tuple[int, int, int, int]]:
    """(start, end, level, type) of the data of each control message (cmsg(3))."""
    found, at = [], 0
    while at + _HEADER.size <= len(control):
        length, level, kind = _HEADER.unpack_from(control, at)
        if length < _HEADER.size or at + length > len(control):
            break
        found.append((at + _HEADER.size, at + length, level, kind))
        at += (length + 7) & ~7
    return found


@handles("sendmsg")
def sys_sendmsg(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """sendmsg(2) with SCM_CREDENTIALS: the kernel is given the real ids. **Errors** EPERM."""
    message = _message(req)
    if message is None or not _HEADER.size <= message.control_size <= _CONTROL_MAX:
        return None
    control = bytearray(req.read(message.control, message.control_size))
    for start, end, level, kind in _parts(bytes(control)):
        if level == socket.SOL_SOCKET and kind == SCM_CREDENTIALS and end - start == _UCRED.size:
            pid, uid, gid = _UCRED.unpack_from(control, start)
            me = vm.procs.tgid(req.tid)
            own = credentials(vm, req.tid, identity)
            if (
                (pid != me and not own.may(CAP_SYS_ADMIN))
                or (uid not in (own.ruid, own.euid, own.suid) and not own.may(CAP_SETUID))
                or (gid not in (own.rgid, own.egid, own.sgid) and not own.may(CAP_SETGID))
            ):
                raise fail(errno.EPERM)
            vm.creds.said.setdefault(me, deque(maxlen=_SAID)).append((uid, gid))
            _UCRED.pack_into(control, start, me, os.geteuid(), os.getegid())
            break
    else:
        return None
    head = _MSGHDR.pack(*message._replace(control=_MSGHDR.size))
    return req.rewrite({1: (head + bytes(control), [32])})


@handles("setsockopt")
def sys_setsockopt(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """setsockopt(SO_PASSCRED): from now on messages are looked at."""
    if signed(req.args[1]) == socket.SOL_SOCKET and req.args[2] == SO_PASSCRED:
        vm.engine.watch(WATCH_MESSAGES)
    return None


@handles("recvmsg")
def sys_recvmsg(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """recvmsg(2) from a socket with SO_PASSCRED."""
    message = _message(req)
    if message is None or message.control_size < _HEADER.size:
        return None
    try:
        copy = socket.socket(fileno=req.getfd(signed(req.args[0])))
    except OSError:
        return None
    if copy.family != socket.AF_UNIX or not copy.getsockopt(socket.SOL_SOCKET, SO_PASSCRED):
        copy.close()
        return None
    flags = req.args[2] & 0xFFFFFFFF
    # the copy shares O_NONBLOCK with the guest
    waits = not flags & socket.MSG_DONTWAIT and os.get_blocking(copy.fileno())
    message_ = message

    def attempt() -> Reply | None:
        try:
            return _receive(vm, req, identity, copy, message_, flags)
        except BlockingIOError:
            return None

    try:
        reply = attempt()
    except BaseException:
        copy.close()
        raise
    if reply is None and waits:
        return wait(
            vm, req, copy.fileno(), select.POLLIN, attempt,
            lambda: Reply.error(ERESTARTSYS), copy.close,
        )  # fmt: skip
    copy.close()
    return Reply.error(errno.EAGAIN) if reply is None else reply


def _receive(
    vm: VirtualMachine, req: Request, identity: Identity, copy: socket.socket, message: Message,
    flags: int,
) -> Reply:  # fmt: skip
    """Take one message from the socket into the guest's memory. BlockingIOError: there is none."""
    count = min(message.iov_count, _IOV_MAX)
    words = struct.unpack(f"<{2 * count}Q", req.read(message.iov, 16 * count))
    pieces = list(zip(words[::2], words[1::2], strict=True))
    room = min(sum(size for _, size in pieces), 1 << 24)
    ours = flags & ~MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
    data, ancillary, shown, address = copy.recvmsg(
        room, min(message.control_size, _CONTROL_MAX), ours
    )
    control = bytearray()
    for level, kind, value in ancillary:
        if level == socket.SOL_SOCKET and kind in (SCM_RIGHTS, SCM_PIDFD):
            value = _pass_on(req, value, bool(flags & MSG_CMSG_CLOEXEC))
        elif level == socket.SOL_SOCKET and kind == SCM_CREDENTIALS:
            value = _translated(vm, identity, value, bool(flags & socket.MSG_PEEK))
        control += _HEADER.pack(_HEADER.size + len(value), level, kind) + value
        control += bytes(-len(control) % 8)
    control = control[: message.control_size]
    req.write(message.control, control)
    done = 0
    for at, size in pieces:
        req.write(at, data[done : done + size])
        done += size
        if done >= len(data):
            break
    name = b"" if not address else struct.pack("<H", socket.AF_UNIX) + _name(address)
    if message.name:
        req.write(message.name, name[: message.name_size])
    head = message._replace(
        name_size=len(name) if message.name else message.name_size,
        control_size=len(control),
        flags=shown & ~MSG_CMSG_CLOEXEC | flags & MSG_CMSG_CLOEXEC,
    )
    req.write(req.args[1], _MSGHDR.pack(*head)[:52])
    return Reply.value(len(data))


def _name(address: str | bytes) -> bytes:
    name = os.fsencode(address)
    return name if name.startswith(b"\0") else name + b"\0"


def _pass_on(req: Request, value: bytes, cloexec: bool) -> bytes:
    """Give descriptors that came with a message to the guest."""
    fds = struct.unpack(f"={len(value) // 4}i", value[: len(value) // 4 * 4])
    numbers = []
    for fd in fds:
        if fd < 0:
            numbers.append(fd)
            continue
        try:
            numbers.append(req.addfd(fd, cloexec))
        finally:
            os.close(fd)
    return struct.pack(f"={len(numbers)}i", *numbers)


def _translated(vm: VirtualMachine, identity: Identity, value: bytes, peek: bool) -> bytes:
    """A struct ucred as guests see it: what the sender said, or has."""
    pid, uid, gid = _UCRED.unpack(value[: _UCRED.size])
    if pid == 0 and uid == 65534:
        return value  # a message from before SO_PASSCRED
    said = vm.creds.said.get(pid)
    if said:
        ids = said[0] if peek else said.popleft()
    else:
        own = _of_process(vm, pid, identity) or _peer(vm, pid, identity)
        ids = (own.ruid, own.rgid) if own is not None else identity.owner(uid, gid)
    return _UCRED.pack(pid, *ids)
