"""The two ends of a transfer: served files, and the guest's own pipes, sockets and files.

The supervisor moves data through copies of the guest's descriptors, and must neither wait in them
nor change their O_NONBLOCK, which the guest shares.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import signal
import socket
import stat
from typing import Protocol

from umvm.guest.nodes import CHUNK
from umvm.guest.openfile import OpenFile
from umvm.syscalls.context import Request, fail
from umvm.syscalls.transfer import room, send_signal

_PIPE_PIECE = 1 << 16
_SOCKET_PIECE = 1 << 18
_PIPE_BUF = 4096
_SPLICE_F_NONBLOCK = 2
_libc = ctypes.CDLL(None, use_errno=True)


def access_mode(fd: int, mode: int) -> bool:
    """Was a descriptor opened for this (O_RDONLY or O_WRONLY)?"""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    return flags & os.O_ACCMODE in (mode, os.O_RDWR) and not flags & os.O_PATH


class Input(Protocol):
    """Where a transfer's data comes from. `read` raises BlockingIOError rather than wait."""

    fd: int
    piece: int
    position: int

    def read(self, size: int) -> bytes: ...
    def took(self, count: int) -> None: ...
    def settle(self) -> None: ...
    def close(self) -> None: ...


class Output(Protocol):
    """Where it goes. `write` takes what it can without waiting, or raises BlockingIOError."""

    fd: int
    piece: int
    position: int
    waits: bool
    pipe: bool
    nonblock: bool

    def write(self, data: bytes) -> int: ...
    def settle(self) -> None: ...
    def close(self) -> None: ...


# --- served files --------------------------------------------------------------------------------


class ServedInput:
    """A served file, read at `offset` or (None) at its position."""

    fd, piece = -1, CHUNK

    def __init__(self, file: OpenFile, offset: int | None) -> None:
        self._file = file
        self.position = file.offset if offset is None else offset

    def read(self, size: int) -> bytes:
        return self._file.read(size, self.position)

    def took(self, count: int) -> None:
        self.position += count

    def settle(self) -> None:
        self._file.offset = self.position

    def close(self) -> None:
        pass


class ServedOutput:
    """A served file, written at `offset` or (None) at its position."""

    fd, piece, waits, pipe, nonblock = -1, CHUNK, False, False, False

    def __init__(self, req: Request, file: OpenFile, offset: int | None) -> None:
        self._req, self._file = req, file
        self.position = file.offset if offset is None else offset

    def write(self, data: bytes) -> int:
        allowed = room(self._req, self.position, len(data))
        count = self._file.write(data[:allowed], self.position)
        self.position += count
        return count

    def settle(self) -> None:
        self._file.offset = self.position

    def close(self) -> None:
        pass


# --- the host's ----------------------------------------------------------------------------------


class HostInput:
    """A host file that can be read at an offset; reading it doesn't wait."""

    piece = CHUNK

    def __init__(self, copy: int, offset: int | None) -> None:
        """`copy` is owned from now on. **Errors** EBADF, ESPIPE, EINVAL."""
        self.fd = copy
        try:
            if not access_mode(copy, os.O_RDONLY):
                raise fail(errno.EBADF)
            if stat.S_ISDIR(os.fstat(copy).st_mode):
                raise fail(errno.EINVAL)
            try:
                position = os.lseek(copy, 0, os.SEEK_CUR)
            except OSError:
                raise fail(errno.ESPIPE if offset is not None else errno.EINVAL) from None
        except OSError:
            os.close(copy)
            raise
        self.position = position if offset is None else offset

    def read(self, size: int) -> bytes:
        return os.pread(self.fd, size, self.position)

    def took(self, count: int) -> None:
        self.position += count

    def settle(self) -> None:
        os.lseek(self.fd, self.position, os.SEEK_SET)

    def close(self) -> None:
        os.close(self.fd)


class PipeInput:
    """A guest's pipe. What is read stays in it until it was written elsewhere (tee(2))."""

    piece, position = _PIPE_PIECE, 0

    def __init__(self, copy: int) -> None:
        self.fd = copy
        self._out, self._in = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._null = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)

    def read(self, size: int) -> bytes:
        count = _libc.tee(self.fd, self._in, ctypes.c_size_t(size), _SPLICE_F_NONBLOCK)
        if count < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        parts = b""
        while len(parts) < count:
            parts += os.read(self._out, count - len(parts))
        return parts

    def took(self, count: int) -> None:
        while count > 0:
            try:
                count -= os.splice(self.fd, self._null, count, flags=_SPLICE_F_NONBLOCK)
            except BlockingIOError:
                return  # somebody else has read it

    def settle(self) -> None:
        pass

    def close(self) -> None:
        for fd in (self.fd, self._out, self._in, self._null):
            os.close(fd)


class HostOutput:
    """A guest's pipe, socket, file or device, by a copy of its descriptor."""

    position = 0

    def __init__(self, req: Request, copy: int) -> None:
        """`copy` is owned from now on. **Errors** EBADF; EINVAL: O_APPEND."""
        self._req, self.fd = req, copy
        flags = fcntl.fcntl(copy, fcntl.F_GETFL)
        kind = stat.S_IFMT(os.fstat(copy).st_mode)
        self.pipe = kind == stat.S_IFIFO
        number = 0
        if not access_mode(copy, os.O_WRONLY):
            number = errno.EBADF
        elif flags & os.O_APPEND and not self.pipe:
            number = errno.EINVAL
        if number:
            os.close(copy)
            raise fail(number)
        self.nonblock = bool(flags & os.O_NONBLOCK)
        self.waits = kind != stat.S_IFREG
        self._socket: socket.socket | None = None
        self._stage = (-1, -1)
        if self.pipe:
            self._stage = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            self.piece, self._write = _PIPE_PIECE, self._to_pipe
        elif kind == stat.S_IFSOCK:
            self._socket = socket.socket(fileno=copy)
            self.piece, self._write = _SOCKET_PIECE, self._to_socket
        elif kind == stat.S_IFREG:
            self.piece, self._write = CHUNK, self._to_file
        else:
            self.piece, self._write = _PIPE_BUF, self._to_device

    def write(self, data: bytes) -> int:
        try:
            return self._write(data)
        except BrokenPipeError:
            send_signal(self._req, signal.SIGPIPE)
            raise

    def _to_pipe(self, data: bytes) -> int:
        """By a pipe of our own, as only splice(2) can be told not to wait."""
        out, into = self._stage
        staged = os.write(into, data)
        moved = 0
        try:
            while moved < staged:
                moved += os.splice(out, self.fd, staged - moved, flags=_SPLICE_F_NONBLOCK)
        except BlockingIOError:
            if not moved:
                raise
        finally:
            left = staged - moved
            while left > 0:
                left -= len(os.read(out, left))
        return moved

    def _to_socket(self, data: bytes) -> int:
        assert self._socket is not None
        return self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    def _to_file(self, data: bytes) -> int:
        return os.write(self.fd, data)

    def _to_device(self, data: bytes) -> int:
        """Where poll(2) says so, as much is taken as a pipe would take."""
        poll = select.poll()
        poll.register(self.fd, select.POLLOUT)
        if not poll.poll(0):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return os.write(self.fd, data)

    def settle(self) -> None:
        pass

    def close(self) -> None:
        for fd in self._stage:
            if fd >= 0:
                os.close(fd)
        if self._socket is not None:
            self._socket.close()
        else:
            os.close(self.fd)
