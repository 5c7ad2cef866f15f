"""A guest's serving loop: carries out what the supervisor asks, until the mount is gone."""

# ruff: noqa: TID252 (this package has another name in guests)
from __future__ import annotations

import array
import errno
import json
import logging
import os
import select
import signal
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from typing import Any

from ..interfaces.filesystem import Caller, FileHandle, set_caller
from ..interfaces.fuse_adapter import FuseAdapter
from . import wire

log = logging.getLogger("umvm.fuse")

SOCKET = "UMVM_SOCKET"
_PROTOCOL = 1
_LENGTH = struct.Struct(">I")
_THREADS_MAX = 64
_UNMOUNT_SECONDS = 10.0


class MountError(Exception):
    """The VM doesn't mount it; the message says why."""


class Control:
    """One request to the VM's control socket whose answer can be waited for with select(2).

    The protocol is that of umvm.control.protocol, which a guest doesn't have.
    """

    def __init__(self, verb: str, args: Mapping[str, Any], fds: tuple[int, ...] = ()) -> None:
        """Connect and send. **Errors** MountError: there is no VM to ask."""
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.socket.connect(os.environ[SOCKET])
            body = json.dumps({"v": _PROTOCOL, "verb": verb, "args": dict(args)}).encode("ascii")
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            data = _LENGTH.pack(len(body)) + body
            sent = self.socket.sendmsg([data], rights)
            self.socket.sendall(data[sent:])
        except OSError as error:
            self.socket.close()
            raise MountError(f"can't reach the VM: {error.strerror}") from error

    def answer(self) -> None:
        """Read the answer and close. **Errors** MountError: it is an error."""
        with self.socket:
            try:
                (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
                answer = json.loads(self._exactly(length))
            except (OSError, ValueError, struct.error) as error:
                raise MountError(f"the VM doesn't answer: {error}") from error
        if not answer.get("ok"):
            raise MountError(str(answer.get("error", "unknown error")))

    def _exactly(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            part = self.socket.recv(length - len(data))
            if not part:
                break
            data += part
        return data


class Session:
    """Mounts a `FuseAdapter` in the VM and serves it."""

    def __init__(self, fs: FuseAdapter, target: str, source: str, options: dict[str, str]) -> None:
        """Prepare to mount at `target`, an absolute path; `options` are passed on to the VM."""
        self.fs = fs
        self._target = target
        self._mount = {"target": target, "source": source, "options": options}
        self._handles: dict[int, FileHandle] = {}
        self._next_handle = 1
        self._lock = threading.Lock()
        self._idle = 0
        self._threads = 0
        self._hung_up = False
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_write.setblocking(False)
        self._socket, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        fs.on_end = self.wake

    def wake(self) -> None:
        """Make `run` look at what has changed. Safe in a signal handler."""
        try:
            self._wake_write.send(b"!")
        except OSError:
            pass  # full: it will look anyway; closed: it is over

    # --- the main thread -----------------------------------------------------------------------

    def run(self, mounted: Callable[[], None]) -> None:
        """Mount, call `mounted`, serve until unmounted, and end the file system.

        **Errors** MountError: it can't be mounted.
        """
        try:
            with self._theirs:
                control = Control("fuse_serve", self._mount, (self._theirs.fileno(),))
            self._serve_until(control)
            control.answer()
            mounted()
            self._serve_until(None)
            if not self._hung_up:
                self._unmount()
            self.fs.destroy()
        finally:
            self._close()

    def _unmount(self) -> None:
        """The program ends it: take the mount out of the view, answering what is still asked."""
        try:
            control = Control("umount", {"target": self._target, "lazy": True})
            if self._serve_until(control, _UNMOUNT_SECONDS):
                control.answer()
        except MountError as error:
            log.debug("unmounting: %s", error)  # somebody else was faster

    def _serve_until(self, control: Control | None, timeout: float | None = None) -> bool:
        """Serve until `control` has an answer; without one until the end. False: it timed out."""
        inline = self.fs.options.nothreads
        watched: list[Any] = [self._wake_read] + [self._socket] * inline
        if control is not None:
            watched.append(control.socket)
        if not inline and not self._threads:
            self._start_thread()
        while control is not None or not (self.fs.ended or self._hung_up):
            ready = select.select(watched, (), (), timeout)[0]
            if not ready:
                return False
            if control is not None and control.socket in ready:
                return True
            if self._wake_read in ready:
                self._wake_read.recv(4096)
            if self._socket in ready and not self._serve_one():
                self._hung_up = True
                watched.remove(self._socket)
        return True

    def _close(self) -> None:
        try:
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the other threads
        except OSError:
            pass
        for one in (self._socket, self._theirs, self._wake_read, self._wake_write):
            one.close()

    # --- serving -------------------------------------------------------------------------------

    def _start_thread(self) -> None:
        self._threads += 1
        self._idle += 1
        threading.Thread(target=self._work, name="umvm-fuse", daemon=True).start()

    def _work(self) -> None:
        while self._serve_one():
            pass
        self._hung_up = True
        self.wake()

    def _serve_one(self) -> bool:
        """Wait for a request and answer it. False: the supervisor hung up."""
        try:
            message = self._socket.recv(wire.MESSAGE)
        except OSError:
            message = b""
        if not message:
            return False
        with self._lock:
            self._idle -= 1
            more = not self.fs.options.nothreads and not self._idle
            if more and self._threads < _THREADS_MAX:
                self._start_thread()
        try:
            for answer in self._answer(message):
                self._socket.send(answer)
        except OSError:
            return False
        finally:
            with self._lock:
                self._idle += 1
        return True

    def _answer(self, message: bytes) -> list[bytes]:
        ident, number, uid, gid, pid = wire.REQUEST.unpack_from(message)
        name = wire.NAMES[number]
        letters, wanted = wire.OPERATIONS[name]
        set_caller(Caller(uid, gid, pid))
        try:
            args = wire.unpack(letters, message[wire.REQUEST.size :])
            return wire.answers(ident, 0, wire.pack(wanted, self._carry_out(name, letters, args)))
        except OSError as error:
            return wire.answers(ident, error.errno or errno.EIO)
        except Exception:
            log.exception("operation %s", name)
            return wire.answers(ident, errno.EIO)

    def _carry_out(self, name: str, letters: str, args: list[Any]) -> tuple[Any, ...]:
        """Call the file system; handles are numbers outside and the adapter's values here."""
        if name == "init":
            return self._init()
        at = letters.find("h")
        number = args[at] if at >= 0 else 0
        if at >= 0:
            args[at] = self._handle(number)
        result = getattr(self.fs, name)(*args)
        if name in ("release", "releasedir"):
            with self._lock:
                self._handles.pop(number, None)
        elif name in ("open", "opendir", "create"):
            with self._lock:
                number, self._next_handle = self._next_handle, self._next_handle + 1
                self._handles[number] = result
            return (number,)
        return (result,)

    def _handle(self, number: int) -> FileHandle:
        if not number:
            return None
        with self._lock:
            if number not in self._handles:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            return self._handles[number]

    def _init(self) -> tuple[Any, ...]:
        fs = self.fs
        fs.init()
        return (
            fs.default_permissions,
            fs.open_unlinked,
            fs.stable_inodes,
            fs.serialized,
            fs.wants_flush,
            fs.entry_timeout,
            fs.subtype.encode("utf-8", "replace"),
            [name.encode() for name in fs.trivial],
        )


class Signals:
    """SIGINT, SIGTERM and SIGHUP end the file system in good order, as libfuse has it.

    SIGINT always does, as fusepy sets it to its default first; the others where nobody else
    handles them. Outside the main thread nothing is changed, as there fusepy can't either.
    """

    def __init__(self, fs: FuseAdapter) -> None:
        self._fs = fs
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            before = signal.getsignal(number)
            if number == signal.SIGINT or before == signal.SIG_DFL:
                try:
                    signal.signal(number, lambda number, frame: self._fs.end())
                except ValueError:
                    return self  # not the main thread
                self._before[number] = before
        return self

    def __exit__(self, *unused: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, signal.SIG_DFL if before is None else before)
