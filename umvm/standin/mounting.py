"""FUSE(…): mounts an Operations object where the program runs, and returns when it is unmounted."""

# ruff: noqa: TID252 (this package has another name in guests)
from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from ..interfaces import fuse_calls, fuse_options
from ..interfaces.fuse_adapter import FuseAdapter
from .session import SOCKET, MountError, Session, Signals

_MOUNT_FAILED = 1  # what libfuse's fuse_main returns, and fusepy raises RuntimeError with
_serving: list[FuseAdapter] = []
"""File systems that FUSE() serves now, for fuse_exit outside an operation."""

_FLOAT_TIMES = (
    "Time as floating point seconds is deprecated: set use_ns = True in your operations class"
)


class FUSE:
    """Mounts `operations` at `mountpoint` and serves it until it is unmounted.

    Keywords: `foreground` (else the process goes into the background once it is mounted), `debug`
    (implies foreground), `nothreads` (all operations in the thread that called), `raw_fi` (open
    and create get a FileInfo), `encoding` and `errors` of names; all others are mount options.

    RuntimeError(1): it can't be mounted; stderr says why. What an operation raised that is no
    Exception, SystemExit for example, ends the file system and is raised here.
    """

    OPTIONS = (("foreground", "-f"), ("debug", "-d"), ("nothreads", "-s"))
    _dialect = "fusepy"

    def __init__(
        self,
        operations: Any,
        mountpoint: str,
        raw_fi: bool = False,
        encoding: str = "utf-8",
        errors: str = "surrogateescape",
        **kwargs: Any,
    ) -> None:
        self.operations = operations
        self.raw_fi = raw_fi
        self.encoding = encoding
        self.errors = errors
        self.use_ns = getattr(operations, "use_ns", False)
        if not self.use_ns:
            warnings.warn(_FLOAT_TIMES, DeprecationWarning, stacklevel=2)
        flags = {name: bool(kwargs.pop(name, False)) for name, _ in self.OPTIONS}
        kwargs.setdefault("fsname", type(operations).__name__)
        given = dict(_plain(kwargs))
        try:
            options, rest = fuse_options.parse(given)
            fuse_options.refuse_unknown(rest)
        except fuse_options.OptionError as error:
            raise _complain(str(error)) from None
        options = options._replace(
            raw_fi=raw_fi,
            encoding=encoding,
            debug=options.debug or flags["debug"],
            nothreads=options.nothreads or flags["nothreads"],
        )
        fs = FuseAdapter(operations, options, errors, self._dialect)
        foreground = flags["foreground"] or options.debug
        if options.debug:
            _log_to_stderr()
        target = _mountpoint(mountpoint)
        (self._stay if foreground else self._go_on_in_background)(fs, target, given)
        del self.operations  # its destructor runs now, as with fusepy
        if fs.failure is not None:
            raise fs.failure

    def _stay(self, fs: FuseAdapter, target: str, given: dict[str, str]) -> None:
        try:
            _serve(fs, target, given, lambda: None)
        except MountError as error:
            raise _complain(f"{target}: {error}") from None

    def _go_on_in_background(self, fs: FuseAdapter, target: str, given: dict[str, str]) -> None:
        """Mount in a child of a session of its own; this process exits once that is done."""
        read_end, write_end = os.pipe()
        _flush()
        child = os.fork()
        if child:
            os.close(write_end)
            with open(read_end, "rb") as pipe:
                mounted = pipe.read() == b"mounted"
            if mounted:
                os._exit(0)
            os.waitpid(child, 0)
            raise RuntimeError(_MOUNT_FAILED)
        os.close(read_end)

        def mounted_here() -> None:
            null = os.open(os.devnull, os.O_RDWR)
            for fd in (0, 1, 2):
                os.dup2(null, fd)
            os.close(null)
            os.write(write_end, b"mounted")
            os.close(write_end)

        try:
            os.setsid()
            os.chdir("/")
            _serve(fs, target, given, mounted_here)
        except MountError as error:
            _complain(f"{target}: {error}")
            _flush()
            os._exit(_MOUNT_FAILED)


def fuse_exit() -> None:
    """End the file system whose operation this thread carries out; its FUSE() returns."""
    fs = fuse_calls.current()
    for one in [fs] if fs is not None else list(_serving):
        one.end()


def _serve(
    fs: FuseAdapter, target: str, given: dict[str, str], mounted: Callable[[], None]
) -> None:
    if not __name__.startswith("_umvm_guest."):
        raise MountError("FUSE() is for programs; here the VM itself mounts the class")
    if not os.environ.get(SOCKET):
        raise MountError(f"not in a VM ({SOCKET} is not set)")
    _serving.append(fs)
    try:
        with Signals(fs):
            Session(fs, target, fs.options.fsname, given).run(mounted)
    finally:
        _serving.remove(fs)


def _mountpoint(path: str) -> str:
    """The mount point's canonical path, which must exist."""
    text = os.fsdecode(path)
    try:
        os.stat(text)
    except OSError as error:
        raise _complain(f"bad mount point `{text}': {error.strerror}") from None
    return os.path.realpath(text)


def _plain(keywords: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Keywords as mount options: True is a flag, False leaves it out."""
    for key, value in keywords.items():
        if not isinstance(value, bool):
            yield key, str(value)
        elif value:
            yield key, ""


def _complain(message: str) -> RuntimeError:
    print(f"fuse: {message}", file=sys.stderr)
    return RuntimeError(_MOUNT_FAILED)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()


def _log_to_stderr() -> None:
    logger = logging.getLogger("umvm.fuse")
    logger.setLevel(logging.INFO)
    if not logger.handlers:
        logger.addHandler(logging.StreamHandler())
