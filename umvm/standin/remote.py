"""The supervisor's end of a file system that a guest serves (umvm.standin.session)."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import select
import socket
import struct
import threading
from collections.abc import Iterable, Sequence
from typing import Any

from umvm.errors import UsageError
from umvm.interfaces.filesystem import Attr, Entry, FileHandle, FileSystem, StatFs, caller
from umvm.standin import wire

log = logging.getLogger(__name__)

_GOODBYE = 1.0
"""Seconds that the end of a mount waits for calls under way."""
_RESULT_MAX = 64 << 20
"""A longer answer (a directory of a million names is half of this) ends the connection."""


def serve(
    vm: Any, source: str, target: bytes, options: dict[str, str], fds: list[int], space: Any = None
) -> None:
    """Mount what the process at the other end of `fds[0]` serves (verb fuse_serve).

    **Errors** UsageError: that is no SOCK_SEQPACKET connection; what mounting raises.
    """
    if not fds:
        raise UsageError("fuse_serve needs a descriptor")
    sock = socket.socket(fileno=fds.pop(0))
    if (sock.family, sock.type) != (socket.AF_UNIX, socket.SOCK_SEQPACKET):
        sock.close()
        raise UsageError("fuse_serve needs a SOCK_SEQPACKET connection")
    fs = RemoteOperations(sock)
    try:
        module, _ = vm.manager.filesystem("fuse")
        mount = vm.mount_object(fs, "fuse", source, target, options, module, space)
    except BaseException:
        fs.destroy()
        raise
    if "auto_unmount" in options:
        threading.Thread(target=_unmount_after, args=(vm, mount, fs), daemon=True).start()


def _unmount_after(vm: Any, mount: Any, fs: RemoteOperations) -> None:
    fs.wait_for_end()
    if not mount.detached:
        vm.remove(mount, lazy=True)


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class _Call:
    """A request under way."""

    __slots__ = ("answer", "parts")

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.answer: tuple[int, bytes] | None = None


class RemoteOperations(FileSystem):
    """Asks the process at the other end of a socket, as Linux asks a FUSE server.

    If that process dies, calls under way fail with ECONNABORTED and later ones with ENOTCONN, until
    the mount is removed. There is no reader thread: of the threads that wait, one reads for all.
    """

    default_permissions = False
    orderly = True

    def __init__(self, sock: socket.socket) -> None:
        """Own `sock`, a SOCK_SEQPACKET connection to a `Session`."""
        self._socket = sock
        self._idents = itertools.count(1)
        self._calls: dict[int, _Call] = {}
        self._turn = threading.Condition()
        self._reading = False
        self._dead = False
        self._trivial: frozenset[bytes] = frozenset()

    # --- life ----------------------------------------------------------------------------------

    def init(self) -> None:
        """Let the guest start; it says what kind of file system this is."""
        (
            self.default_permissions,
            self.open_unlinked,
            self.stable_inodes,
            self.serialized,
            self.wants_flush,
            self.entry_timeout,
            subtype,
            trivial,
        ) = self._results("init")
        self.subtype = subtype.decode("utf-8", "replace")
        self._trivial = frozenset(trivial)

    def destroy(self) -> None:
        """Hang up: the guest's FUSE() then ends. Calls under way may still get their answers: a
        program that ends its own mount was asked something when it decided so."""
        with self._turn:
            self._turn.wait_for(lambda: self._dead or not self._calls, _GOODBYE)
        self._hang_up()
        self._socket.close()

    def wait_for_end(self) -> None:
        """Return when the guest has closed its end, or `destroy` was called."""
        poll = select.poll()
        try:
            poll.register(self._socket.fileno(), select.POLLRDHUP)
            poll.poll()
        except (OSError, ValueError):
            pass  # closed meanwhile

    # --- asking --------------------------------------------------------------------------------

    def _ask(self, name: str, *args: Any) -> Any:
        """Carry out an operation that has one result."""
        return self._results(name, *args)[0]

    def _do(self, name: str, *args: Any) -> None:
        self._results(name, *args)

    def _results(self, name: str, *args: Any) -> list[Any]:
        letters, wanted = wire.OPERATIONS[name]
        who = caller()
        ident = next(self._idents) & 0xFFFFFFFF
        head = wire.REQUEST.pack(ident, wire.NUMBERS[name], who.uid, who.gid, who.pid)
        error, data = self._exchange(ident, head + wire.pack(letters, args))
        if error:
            raise _error(error if 0 < error < 4096 else errno.EIO)
        try:
            return wire.unpack(wanted, data)
        except wire.WireError as problem:
            raise self._broken(problem) from problem

    def _exchange(self, ident: int, message: bytes) -> tuple[int, bytes]:
        """Send a request and wait for its answer, reading for others if nobody else does."""
        call = _Call()
        with self._turn:
            if self._dead:
                raise _error(errno.ENOTCONN)
            self._calls[ident] = call
        try:
            self._send(message)
            while call.answer is None:
                self._wait_or_read(call)
            return call.answer
        finally:
            with self._turn:
                self._calls.pop(ident, None)
                if not self._calls:
                    self._turn.notify_all()

    def _send(self, message: bytes) -> None:
        try:
            self._socket.send(message)
        except OSError as error:
            if error.errno == errno.EMSGSIZE:
                raise _error(errno.ENAMETOOLONG) from error
            self._hang_up()
            raise _error(errno.ENOTCONN) from error

    def _wait_or_read(self, call: _Call) -> None:
        """One step: sleep while another thread reads, else read one message."""
        with self._turn:
            while self._reading and call.answer is None and not self._dead:
                self._turn.wait()
            if call.answer is not None:
                return
            if self._dead:
                raise _error(errno.ECONNABORTED)
            self._reading = True
        data = b""
        try:
            data = self._socket.recv(wire.MESSAGE)
        except OSError as error:
            log.debug("file system server: %s", error)
        finally:
            with self._turn:
                self._reading = False
                if data:
                    self._arrived(data)
                self._turn.notify_all()
        if not data:
            self._hang_up()

    def _arrived(self, data: bytes) -> None:
        """File an answer, or a part of one, under its request."""
        try:
            ident, error, more = wire.ANSWER.unpack_from(data)
        except struct.error as problem:
            raise self._broken(problem) from problem
        call = self._calls.get(ident)
        if call is None:
            return
        call.parts.append(data[wire.ANSWER.size :])
        if len(call.parts) * wire.CHUNK > _RESULT_MAX:
            raise self._broken("answer too long")
        if not more:
            call.answer = error, b"".join(call.parts)

    def _broken(self, problem: object) -> OSError:
        log.warning("file system server doesn't keep to the protocol: %s", problem)
        self._hang_up()
        return _error(errno.EIO)

    def _hang_up(self) -> None:
        with self._turn:
            self._dead = True
            self._turn.notify_all()
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the peer was faster

    # --- the operations ------------------------------------------------------------------------

    def getattr(self, path: bytes, fh: FileHandle = None) -> Attr:
        attr: Attr = self._ask("getattr", path, fh or 0)
        return attr

    def access(self, path: bytes, mask: int) -> None:
        if b"access" not in self._trivial:
            self._do("access", path, mask)

    def chmod(self, path: bytes, mode: int, fh: FileHandle = None) -> None:
        self._do("chmod", path, mode, fh or 0)

    def chown(self, path: bytes, uid: int, gid: int, fh: FileHandle = None) -> None:
        self._do("chown", path, uid, gid, fh or 0)

    def truncate(self, path: bytes, size: int, fh: FileHandle = None) -> None:
        self._do("truncate", path, size, fh or 0)

    def utimens(
        self, path: bytes, atime_ns: int | None, mtime_ns: int | None, fh: FileHandle = None
    ) -> None:
        self._do("utimens", path, atime_ns, mtime_ns, fh or 0)

    def statfs(self, path: bytes) -> StatFs:
        result: StatFs = self._ask("statfs", path)
        return result

    def readlink(self, path: bytes) -> bytes:
        target: bytes = self._ask("readlink", path)
        return target

    def mknod(self, path: bytes, mode: int, rdev: int) -> None:
        self._do("mknod", path, mode, rdev)

    def mkdir(self, path: bytes, mode: int) -> None:
        self._do("mkdir", path, mode)

    def unlink(self, path: bytes) -> None:
        self._do("unlink", path)

    def rmdir(self, path: bytes) -> None:
        self._do("rmdir", path)

    def symlink(self, target: bytes, path: bytes) -> None:
        self._do("symlink", target, path)

    def rename(self, old: bytes, new: bytes, flags: int = 0) -> None:
        self._do("rename", old, new, flags)

    def link(self, old: bytes, new: bytes) -> None:
        self._do("link", old, new)

    def opendir(self, path: bytes) -> FileHandle:
        return self._ask("opendir", path)

    def readdir(self, path: bytes, fh: FileHandle) -> Iterable[Entry]:
        entries: list[Entry] = self._ask("readdir", path, fh or 0)
        return entries

    def fsyncdir(self, path: bytes, fh: FileHandle, datasync: bool) -> None:
        if b"fsyncdir" not in self._trivial:
            self._do("fsyncdir", path, fh or 0, datasync)

    def releasedir(self, path: bytes, fh: FileHandle) -> None:
        self._do("releasedir", path, fh or 0)

    def open(self, path: bytes, flags: int) -> FileHandle:
        return self._ask("open", path, flags)

    def create(self, path: bytes, mode: int, flags: int) -> FileHandle:
        return self._ask("create", path, mode, flags)

    def read(self, path: bytes, fh: FileHandle, size: int, offset: int) -> bytes:
        parts: list[bytes] = []
        done = 0
        while done < size:
            want = min(wire.CHUNK, size - done)
            part: bytes = self._ask("read", path, fh or 0, want, offset + done)
            if len(part) > want:
                raise self._broken("read gave too much")
            parts.append(part)
            done += len(part)
            if len(part) < want:
                break
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write(self, path: bytes, fh: FileHandle, data: bytes, offset: int) -> int:
        done = 0
        while done < len(data):
            part = bytes(data[done : done + wire.CHUNK])
            try:
                count: int = self._ask("write", path, fh or 0, part, offset + done)
            except OSError:
                if done:
                    break  # what is written counts; the next write gets the error
                raise
            if not 0 <= count <= len(part):
                raise self._broken("write took too much")
            done += count
            if count < len(part):
                break
        return done

    def flush(self, path: bytes, fh: FileHandle) -> None:
        self._do("flush", path, fh or 0)

    def fsync(self, path: bytes, fh: FileHandle, datasync: bool) -> None:
        if b"fsync" not in self._trivial:
            self._do("fsync", path, fh or 0, datasync)

    def release(self, path: bytes, fh: FileHandle) -> None:
        self._do("release", path, fh or 0)

    def fallocate(self, path: bytes, fh: FileHandle, mode: int, offset: int, length: int) -> None:
        self._do("fallocate", path, fh or 0, mode, offset, length)

    def ioctl(self, path: bytes, fh: FileHandle, command: int, data: bytes) -> bytes:
        result: bytes = self._ask("ioctl", path, fh or 0, command, data)
        return result

    def getxattr(self, path: bytes, name: bytes, fh: FileHandle = None) -> bytes:
        value: bytes = self._ask("getxattr", path, name)
        return value

    def setxattr(
        self, path: bytes, name: bytes, value: bytes, flags: int, fh: FileHandle = None
    ) -> None:
        self._do("setxattr", path, name, value, flags)

    def listxattr(self, path: bytes, fh: FileHandle = None) -> Sequence[bytes]:
        names: list[bytes] = self._ask("listxattr", path)
        return names

    def removexattr(self, path: bytes, name: bytes, fh: FileHandle = None) -> None:
        self._do("removexattr", path, name)
