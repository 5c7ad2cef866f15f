"""sendfile, splice and copy_file_range where one side, or both, is a served file."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import stat
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from umvm.guest.nodes import CHUNK
from umvm.guest.openfile import OpenFile
from umvm.syscalls.context import Reply, Request, enter, fail, handles, signed, signed64
from umvm.syscalls.endpoints import (
    HostInput,
    HostOutput,
    Input,
    Output,
    PipeInput,
    ServedInput,
    ServedOutput,
    access_mode,
)  # fmt: skip
from umvm.syscalls.transfer import MAX_COUNT, MAX_OFFSET, count_of, room, served
from umvm.syscalls.waiting import ERESTARTSYS, wait

if TYPE_CHECKING:
    from umvm.vm import VirtualMachine

SPLICE_F_NONBLOCK, SPLICE_F_ALL = 2, 15
UINT64_MAX = (1 << 64) - 1
_OFFSET = struct.Struct("<q")


class Transfer:
    """A copy from an input to an output that may have to wait for either.

    `once`: it ends as soon as something was moved and one side would block. `finish(count)` stores
    positions and gives the reply.
    """

    def __init__(
        self, source: Input, sink: Output, count: int, once: bool, nonblock: bool,
        finish: Callable[[int], Reply],
    ) -> None:  # fmt: skip
        self._source, self._sink, self._count = source, sink, count
        self._once, self._nonblock, self._finish = once, nonblock, finish
        self._done = 0
        self._waits_for_input = False

    def run(self, vm: VirtualMachine, req: Request) -> Reply:
        """Move what can be moved now; if that isn't all, go on while the guest waits."""
        closed = True
        try:
            reply = self._step()
            if reply is not None:
                return reply
            closed = False
        finally:
            if closed:
                self._close()
        if self._waits_for_input:
            fd, events = self._source.fd, select.POLLIN
        else:
            fd, events = self._sink.fd, select.POLLOUT
        return wait(vm, req, fd, events, self._step, self._interrupted, self._close)

    def _step(self) -> Reply | None:
        try:
            while self._done < self._count:
                size = min(self._sink.piece, self._source.piece, self._count - self._done)
                self._waits_for_input = True
                data = self._source.read(size)
                if not data:
                    break
                self._waits_for_input = False
                moved = self._sink.write(data)
                self._source.took(moved)
                self._done += moved
                if moved < len(data) and not self._sink.waits:
                    break
        except BlockingIOError:
            if not (self._done and (self._once or self._nonblock)):
                if self._nonblock:
                    raise
                return None
        except OSError:
            if not self._done:
                raise
        return self._finish(self._done)

    def _interrupted(self) -> Reply:
        return self._finish(self._done) if self._done else Reply.error(ERESTARTSYS)

    def _close(self) -> None:
        self._source.close()
        self._sink.close()


def _offset_at(req: Request, addr: int) -> int:
    """The loff_t that an argument points to. **Errors** EFAULT; EINVAL: negative."""
    (offset,) = _OFFSET.unpack(req.read(addr, 8))
    if offset < 0:
        raise fail(errno.EINVAL)
    return int(offset)


def _finisher(
    req: Request, source: Input, sink: Output, at_in: int, at_out: int
) -> Callable[[int], Reply]:
    """Stores where the copy ended: at the addresses given, else as the files' positions."""

    def finish(count: int) -> Reply:
        for side, addr in ((source, at_in), (sink, at_out)):
            if addr:
                req.write(addr, _OFFSET.pack(side.position))
            else:
                side.settle()
        return Reply.value(count)

    return finish


# --- sendfile -------------------------------------------------------------------------------------


@handles("sendfile")
def sys_sendfile(vm: VirtualMachine, req: Request) -> Reply | None:
    """sendfile(2). **Source** do_sendfile, fs/read_write.c."""
    target, source = served(vm, req, 0), served(vm, req, 1)
    if target is None and source is None:
        return None
    at_in = req.args[2]
    offset = _offset_at(req, at_in) if at_in else None
    entry = _input(req, source, signed(req.args[1]), offset)
    try:
        count = count_of(req.args[3])
        exit_ = _output(req, target, signed(req.args[0]), None)
    except OSError:
        entry.close()
        raise
    enter(vm, req)
    finish = _finisher(req, entry, exit_, at_in, 0)
    return Transfer(entry, exit_, count, exit_.pipe, exit_.nonblock, finish).run(vm, req)


def _input(req: Request, file: OpenFile | None, fd: int, offset: int | None) -> Input:
    """**Errors** EBADF, EINVAL: a directory, or a host file that can't be read at an offset."""
    if file is not None:
        if not file.readable:
            raise fail(errno.EBADF)
        if file.directory:
            raise fail(errno.EINVAL)
        return ServedInput(file, offset)
    return HostInput(req.getfd(fd), offset)


def _output(req: Request, file: OpenFile | None, fd: int, offset: int | None) -> Output:
    """**Errors** EBADF, EINVAL: O_APPEND."""
    if file is not None:
        if not file.writable:
            raise fail(errno.EBADF)
        if file.flags & os.O_APPEND:
            raise fail(errno.EINVAL)
        return ServedOutput(req, file, offset)
    return HostOutput(req, req.getfd(fd))


# --- splice ---------------------------------------------------------------------------------------


@handles("splice")
def sys_splice(vm: VirtualMachine, req: Request) -> Reply | None:
    """splice(2) between a served file and a pipe. **Source** do_splice, fs/splice.c."""
    source, target = served(vm, req, 0), served(vm, req, 2)
    if source is None and target is None:
        return None
    fd_in, at_in, fd_out, at_out, size, flags = req.args
    if not size:
        return Reply.value(0)
    if flags & ~SPLICE_F_ALL & 0xFFFFFFFF:
        raise fail(errno.EINVAL)
    count = count_of(size)
    nonblock = bool(flags & SPLICE_F_NONBLOCK)
    if source is not None and target is not None:
        raise fail(errno.EINVAL)
    if target is not None:
        copy = _pipe(req, signed(fd_in), at_in, os.O_RDONLY)
        entry: Input = PipeInput(copy)
        with _closing(entry):
            exit_ = _output(req, target, 0, _offset_at(req, at_out) if at_out else None)
        enter(vm, req)
        finish = _finisher(req, entry, exit_, 0, at_out)
        return Transfer(entry, exit_, count, True, nonblock, finish).run(vm, req)
    pipe = HostOutput(req, _pipe(req, signed(fd_out), at_out, os.O_WRONLY))
    with _closing(pipe):
        entry = _input(req, source, 0, _offset_at(req, at_in) if at_in else None)
    enter(vm, req)
    finish = _finisher(req, entry, pipe, at_in, 0)
    return Transfer(entry, pipe, count, True, nonblock or pipe.nonblock, finish).run(vm, req)


class _closing:
    """Closes an end of a transfer if the other can't be had."""

    def __init__(self, end: Input | Output) -> None:
        self._end = end

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self._end.close()


def _pipe(req: Request, fd: int, offset_addr: int, mode: int) -> int:
    """A copy of the guest's pipe. **Errors** EBADF; EINVAL: not a pipe; ESPIPE: has an offset."""
    copy = req.getfd(fd)
    number = 0
    if not access_mode(copy, mode):
        number = errno.EBADF
    elif not stat.S_ISFIFO(os.fstat(copy).st_mode):
        number = errno.EINVAL
    elif offset_addr:
        number = errno.ESPIPE
    if number:
        os.close(copy)
        raise fail(number)
    return copy


@handles("tee", "vmsplice")
def sys_tee(vm: VirtualMachine, req: Request) -> Reply | None:
    """tee(2), vmsplice(2): both want pipes, so the kernel refuses a placeholder."""
    served(vm, req, 0)
    if req.nr == 276:
        served(vm, req, 1)
    return None


# --- copy_file_range ------------------------------------------------------------------------------


@handles("copy_file_range")
def sys_copy_file_range(vm: VirtualMachine, req: Request) -> Reply | None:
    """copy_file_range(2) within a mount. **Source** generic_copy_file_checks, fs/read_write.c.

    **Errors** EXDEV: the files are on different mounts, one perhaps on the host.
    """
    fd_in, at_in, fd_out, at_out, size, flags = req.args
    source, target = served(vm, req, 0), served(vm, req, 2)
    if source is None and target is None:
        return None
    sides = (_side(req, source, signed(fd_in)), _side(req, target, signed(fd_out)))
    start = _word_at(req, at_in) if at_in else source.offset if source else 0
    to = _word_at(req, at_out) if at_out else target.offset if target else 0
    if flags:
        raise fail(errno.EINVAL)
    _may_copy(*sides)
    if source is None or target is None or source.mount is not target.mount:
        raise fail(errno.EXDEV)
    if start + size > UINT64_MAX or to + size > UINT64_MAX:
        raise fail(errno.EOVERFLOW)
    enter(vm, req)
    length = source.size()
    count = 0
    if signed64(start) < length:
        count = room(req, to, min(size, length - signed64(start), MAX_COUNT))
    if source.node is target.node and start < to + count and to < start + count:
        raise fail(errno.EINVAL)
    if start > MAX_OFFSET or to > MAX_OFFSET:
        raise fail(errno.EINVAL)
    done = _copy(req, source, start, target, to, count)
    if at_in:
        req.write(at_in, _OFFSET.pack(start + done))
    else:
        source.offset = start + done
    if at_out:
        req.write(at_out, _OFFSET.pack(to + done))
    else:
        target.offset = to + done
    return Reply.value(done)


class _Side(NamedTuple):
    """What matters of a file that copy_file_range is asked to use."""

    kind: int
    readable: bool
    writable: bool
    append: bool


def _side(req: Request, file: OpenFile | None, fd: int) -> _Side:
    """**Errors** EBADF: there is no such descriptor."""
    if file is not None:
        kind = stat.S_IFDIR if file.directory else stat.S_IFREG
        return _Side(kind, file.readable, file.writable, bool(file.flags & os.O_APPEND))
    copy = req.getfd(fd)
    try:
        kind = stat.S_IFMT(os.fstat(copy).st_mode)
        append = fcntl.fcntl(copy, fcntl.F_GETFL) & os.O_APPEND
        modes = access_mode(copy, os.O_RDONLY), access_mode(copy, os.O_WRONLY)
        return _Side(kind, *modes, bool(append))
    finally:
        os.close(copy)


def _may_copy(source: _Side, target: _Side) -> None:
    """generic_file_rw_checks. **Errors** EISDIR, EINVAL: not a regular file, EBADF."""
    kinds = (source.kind, target.kind)
    if stat.S_IFDIR in kinds:
        raise fail(errno.EISDIR)
    if kinds != (stat.S_IFREG, stat.S_IFREG):
        raise fail(errno.EINVAL)
    if not source.readable or not target.writable or target.append:
        raise fail(errno.EBADF)


def _word_at(req: Request, addr: int) -> int:
    """An offset, as the kernel takes it here: not yet known to be positive. **Errors** EFAULT."""
    return int.from_bytes(req.read(addr, 8), "little")


def _copy(req: Request, source: OpenFile, start: int, target: OpenFile, to: int, count: int) -> int:
    done = 0
    while done < count and (done % (64 * CHUNK) or req.alive()):
        try:
            data = source.read(min(CHUNK, count - done), start + done)
            if not data:
                break
            moved = target.write(data, to + done)
        except OSError:
            if not done:
                raise
            break
        done += moved
        if moved < len(data):
            break
    return done


__all__ = ["Transfer"]
