"""A line for each system call that reaches the supervisor, as strace(1) writes them.

    umvm run -m trace,calls=openat,%file,file=/tmp/log CMD
    umvm insmod trace claimed

Options: `calls=` names and classes (`%file`, `%network`, …; all by default), `claimed` only those
that somebody answers or changes, `file=` where to append the lines, by default the supervisor's log
at level INFO (`umvm run -v`). The result of a call that the kernel runs isn't known: `?`.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import struct
from collections.abc import Callable
from typing import Any

from umvm import Reply, Request, SyscallClass
from umvm.errors import UsageError
from umvm.syscalls import table

log = logging.getLogger(__name__)

AT_FDCWD = -100
TEXT = 64
"""Bytes of a string that are shown."""
_OPTIONS = ("calls", "claimed", "file")
_OPEN = {"open": 1, "openat": 2}
"""Calls whose argument with this index is O_* flags."""
_FLAGS = {
    getattr(os, name): name
    for name in str.split(
        "O_CREAT O_EXCL O_NOCTTY O_TRUNC O_APPEND O_NONBLOCK O_DSYNC O_DIRECT O_DIRECTORY "
        "O_NOFOLLOW O_NOATIME O_CLOEXEC O_PATH"
    )
}
_ACCESS = ("O_RDONLY", "O_WRONLY", "O_RDWR", "O_ACCMODE")


# --- arguments -----------------------------------------------------------------------------------


def _signed(number: int) -> int:
    number &= 0xFFFFFFFF
    return number - (1 << 32) if number & 0x80000000 else number


def _quoted(data: bytes) -> str:
    text = "".join(chr(c) if 32 <= c < 127 and c not in b'"\\' else f"\\x{c:02x}" for c in data)
    return f'"{text}"'


def _string(req: Request, value: int) -> str:
    if not value:
        return "NULL"
    try:
        text = req.string(value)
    except OSError:
        return f"{value:#x}"
    return _quoted(text[:TEXT]) + "..." * (len(text) > TEXT)


def _dirfd(req: Request, value: int) -> str:
    fd = _signed(value)
    return "AT_FDCWD" if fd == AT_FDCWD else str(fd)


def _address(req: Request, value: int) -> str:
    """struct sockaddr, as far as it can be read."""
    data = req.peek(value, 28) if value else b""
    if len(data) < 2:
        return f"{value:#x}" if value else "NULL"
    (family,) = struct.unpack("=H", data[:2])
    try:
        name = socket.AddressFamily(family).name
    except ValueError:
        return f"{{sa_family={family}}}"
    if family == socket.AF_INET and len(data) >= 8:
        port = int.from_bytes(data[2:4], "big")
        return f"{{{name}, {socket.inet_ntop(family, data[4:8])}:{port}}}"
    if family == socket.AF_INET6 and len(data) >= 24:
        port = int.from_bytes(data[2:4], "big")
        return f"{{{name}, [{socket.inet_ntop(family, data[8:24])}]:{port}}}"
    if family == socket.AF_UNIX:
        path = req.peek(value + 2, 108)
        shown = b"@" + path[1:] if path.startswith(b"\0") else path
        return f"{{{name}, {_quoted(shown.split(bytes(1), 1)[0])}}}"
    return f"{{{name}}}"


_KINDS: dict[str, Callable[[Request, int], str]] = {
    "path": _string,
    "str": _string,
    "dirfd": _dirfd,
    "sock": _address,
    "ptr": lambda req, value: f"{value:#x}" if value else "NULL",
    "addr": lambda req, value: f"{value:#x}" if value else "NULL",
    "flags": lambda req, value: f"{value & 0xFFFFFFFF:#x}",
    "mode": lambda req, value: f"0{value & 0xFFFFFFFF:o}",
    "size": lambda req, value: str(value),
    "off": lambda req, value: str(value - (value >> 63 << 64)),
}
"""How to show each kind of argument of the table; the others are C ints."""


def open_flags(value: int) -> str:
    """O_* flags by name."""
    names = [_ACCESS[value & 3], *(name for bit, name in _FLAGS.items() if value & bit == bit)]
    rest = value & 0xFFFFFFFF & ~3
    for bit in _FLAGS:
        rest &= ~bit
    return "|".join([*names, f"{rest:#x}"] if rest else names)


def call(req: Request) -> str:
    """A call with its arguments."""
    row = table.BY_NR[req.nr]
    shown = []
    for index, kind in enumerate(row.args.split()):
        if _OPEN.get(row.name) == index:
            shown.append(open_flags(req.args[index]))
            continue
        show = _KINDS.get(kind)
        shown.append(show(req, req.args[index]) if show else str(_signed(req.args[index])))
    return f"{row.name}({', '.join(shown)})"


_VERDICTS = ("?", "", "", "? (descriptor)", "? (later)", "? (changed)")
"""By Reply.kind: run, value, error, fd, later, and what Request.rewrite gives."""


def result(reply: Reply | None) -> str:
    """What a call returns, as far as that is known."""
    shown = _VERDICTS[reply.kind if reply is not None else 0]
    if shown or reply is None:
        return shown
    return failure(reply.number) if reply.kind == 2 else str(reply.number)


def failure(number: int) -> str:
    """An error as strace shows it."""
    return f"-1 {errno.errorcode.get(number, number)} ({os.strerror(number)})"


# --- the module ----------------------------------------------------------------------------------


class Trace:
    """Writes the lines of one VM."""

    def __init__(self, vm: Any, path: str | None, claimed: bool) -> None:
        self._vm = vm
        self._claimed = claimed
        self._failed = False
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(path, flags, 0o644) if path is not None else -1

    def hook(self, req: Request) -> Reply | None:
        """Let the others answer, and write down what they say."""
        before = call(req)  # the answer may change what the arguments point to
        try:
            reply: Reply | None = self._vm.calls.pass_on(req, self.hook)
        except OSError as error:
            self._write(req, before, failure(error.errno or errno.EIO))
            raise
        if reply is not None or not self._claimed:
            self._write(req, before, result(reply))
        return reply

    def _write(self, req: Request, what: str, how: str) -> None:
        line = f"{req.tid} {what} = {how}"
        if self._fd < 0:
            log.info("%s", line)
            return
        try:
            os.write(self._fd, line.encode() + b"\n")
        except OSError as error:  # which is no business of the guest's
            if not self._failed:
                log.warning("trace: lines are lost: %s", error)
            self._failed = True

    def close(self) -> None:
        """No more calls will come."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


_traces: dict[Any, Trace] = {}


def umvm_start(vm: Any, options: dict[str, str]) -> list[SyscallClass]:
    """Be asked first for the calls wanted."""
    names = [name for name in options if name.startswith("%") or name in table.BY_NAME]
    unknown = set(options) - set(_OPTIONS) - set(names)
    if unknown:
        known = ", ".join(_OPTIONS)
        raise UsageError(f"trace: unknown option {min(unknown)!r} (there are {known})")
    wanted = [name for name in options.get("calls", "").split(",") if name] + names
    trace = _traces[vm] = Trace(vm, options.get("file"), "claimed" in options)
    return [SyscallClass(tuple(wanted) or ("%all",), trace.hook)]


def umvm_stop(vm: Any) -> None:
    """Close the file."""
    trace = _traces.pop(vm, None)
    if trace is not None:
        trace.close()
