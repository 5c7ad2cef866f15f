"""Errors for operators: one line on stderr and an exit status, never a traceback.

Guest-visible errors are not these: they are `OSError(errno)`. Broken invariants are neither; they
surface as what they are.
"""

from __future__ import annotations

import errno


def exit_code_of(number: int | None) -> int:
    """The exit status for an errno: the number itself, but 3 for ENOENT, as 2 is a usage error."""
    if number is None or not 0 < number < 125:
        return 1
    return 3 if number == errno.ENOENT else number


class UmvmError(Exception):
    """Something the operator asked for can't be done; the message says what and why."""

    exit_code: int = 1


class UsageError(UmvmError):
    """The request itself is malformed."""

    exit_code = 2


class NotFound(UmvmError):
    """The named VM, module, file system type or mount doesn't exist (ENOENT)."""

    exit_code = exit_code_of(errno.ENOENT)


class Exists(UmvmError):
    """The thing exists already, for example a module that is loaded (EEXIST)."""

    exit_code = errno.EEXIST


class Busy(UmvmError):
    """The thing is in use and force was not asked for (EBUSY)."""

    exit_code = errno.EBUSY


class Denied(UmvmError):
    """The caller may not do this (EACCES)."""

    exit_code = errno.EACCES


class CommandNotFound(UmvmError):
    """The guest's program doesn't exist; the shell's convention."""

    exit_code = 127


class NotExecutable(UmvmError):
    """The guest's program exists and can't be executed; the shell's convention."""

    exit_code = 126


class RemoteError(UmvmError):
    """An error answered by a supervisor; carries the exit code it chose."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = code


def in_a_line(error: OSError) -> str:
    """Describe an OSError as the C library's tools do: `NAME: what is wrong`."""
    text = error.strerror or str(error) or type(error).__name__
    if error.filename is None:
        return text
    name = error.filename
    return f"{os_name(name)}: {text}"


def os_name(name: object) -> str:
    """A file name in a message, whatever type it was given as."""
    return name.decode(errors="backslashreplace") if isinstance(name, bytes) else str(name)
