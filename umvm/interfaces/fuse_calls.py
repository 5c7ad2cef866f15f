"""How an Operations object of fusepy or mfusepy is called, and what its exceptions mean.

Two dialects exist:

- *fusepy*: the object is called, `operations("getattr", path, fh)`, so that a `__call__` of its own
  sees every operation; an object that can't be called has its methods called.
- *mfusepy*: methods are called; those inherited from `mfusepy.Operations` count as missing.

Importable by itself on Python 3.8 and later, as guests use it too. **Source**: the docstrings of
fusepy 3.0.1 and mfusepy 3.1.1; libfuse 2.9.9 lib/fuse.c.
"""

from __future__ import annotations

import errno
import functools
import inspect
import logging
import os
import threading
from collections.abc import Callable
from typing import Any, TypeVar, cast

from .filesystem import FileHandle, FileSystem, caller
from .fuse_options import FuseOptions
from .fuse_structs import config_of, connection, options_of

log = logging.getLogger("umvm.fuse")

_MODULES = ("fuse", "fusepy", "mfusepy")
_TRIVIAL = ("access", "flush", "fsync", "fsyncdir")  # their default does nothing and succeeds

_current = threading.local()
Method = TypeVar("Method", bound=Callable[..., Any])


def current() -> FuseCalls | None:
    """The file system whose operation this thread carries out (what fuse_exit is about)."""
    return cast("FuseCalls | None", getattr(_current, "adapter", None))


def fuse_get_context() -> tuple[int, int, int]:
    """Return (uid, gid, pid) of the process on whose behalf an operation runs."""
    who = caller()
    return who.uid, who.gid, who.pid


def fail(number: int) -> OSError:
    """An OSError to be raised."""
    return OSError(number, os.strerror(number))


def guarded(method: Method) -> Method:
    """Turn whatever an operation raises into what fusepy's caller would get."""

    def answer(self: FuseCalls, *args: Any) -> Any:
        outer = current()
        _current.adapter = self
        try:
            return method(self, *args)
        except Exception as error:
            translated = self.answer_for(method.__name__, error)
            if translated is error:
                raise
            raise translated from error
        except BaseException as error:  # SystemExit in an operation ends it, not the process
            log.critical("%s: %r raised: the file system ends", method.__name__, error)
            self.end(error)
            raise fail(errno.EFAULT) from error
        finally:
            _current.adapter = outer

    @functools.wraps(method)
    def wrapper(self: FuseCalls, *args: Any) -> Any:
        if self.ended:
            raise fail(errno.ENOTCONN)
        return self.carry(answer, self, *args)

    return cast(Method, wrapper)


def here(function: Callable[..., Any], *args: Any) -> Any:
    """Carry a call out in the thread that makes it."""
    return function(*args)


class FuseCalls(FileSystem):
    """An Operations object with its options; the base of `FuseAdapter`."""

    def __init__(
        self,
        operations: Any,
        options: FuseOptions | None = None,
        errors: str = "surrogateescape",
        dialect: str = "",
    ) -> None:
        """Wrap `operations`; `dialect` is "fusepy", "mfusepy" or, empty, told by its class."""
        self.operations = operations
        self.mfusepy = (dialect or dialect_of(operations)) == "mfusepy"
        self.called = callable(operations) and not self.mfusepy
        self.use_ns = bool(getattr(operations, "use_ns", False))
        self.errors = errors
        self.ended = False
        self.failure: BaseException | None = None
        """What an operation raised that no file system survives: SystemExit, KeyboardInterrupt."""
        self.on_end: Callable[[], None] | None = None
        """Called when the file system ends by itself: fuse_exit, or such an exception."""
        self.carry: Callable[..., Any] = here
        """How calls are carried out: here, or in a thread of their own."""
        self._started = False
        self._logged: set[tuple[str, str, int]] = set()
        self.trivial = frozenset(name for name in _TRIVIAL if self._does_nothing(name))
        """Operations that would do nothing and succeed."""
        options = options or FuseOptions()
        nopath = options.nopath or bool(getattr(operations, "flag_nopath", False))
        self._apply(options._replace(nopath=nopath))

    def _apply(self, options: FuseOptions) -> None:
        """Make the attributes that the VM looks at."""
        self.options = options
        self.default_permissions = options.default_permissions
        self.open_unlinked = options.hard_remove
        self.stable_inodes = options.use_ino
        self.serialized = options.nothreads
        self.entry_timeout = options.entry_timeout
        self.wants_flush = "flush" not in self.trivial
        self.subtype = options.subtype

    # --- calling -------------------------------------------------------------------------------

    def has(self, op: str) -> bool:
        """Tell whether the object offers an operation; libfuse answers ENOSYS for the others."""
        method = getattr(self.operations, op, None)
        return method is not None and not (self.mfusepy and ignored(method))

    def _does_nothing(self, op: str) -> bool:
        """Tell whether an operation is missing, or is the default that only returns 0."""
        if not self.has(op):
            return True
        kind = type(self.operations)
        if self.called and not _of_operations(getattr(kind, "__call__", None)):  # noqa: B004
            return False  # it wants to see every operation
        return _of_operations(getattr(kind, op, None))

    def ask(self, op: str, *args: Any) -> Any:
        """Carry out an operation. **Errors** ENOSYS: the object doesn't have it."""
        if not self.has(op):
            raise fail(errno.ENOSYS)
        if not self.options.debug:
            return self._call(op, *args)
        log.info("-> %s%r", op, args)
        try:
            result = self._call(op, *args)
        except OSError as error:
            log.info("<- %s: %s", op, error)
            raise
        log.info("<- %s: %.200r", op, result)
        return result

    def _call(self, op: str, *args: Any) -> Any:
        if self.called:
            return self.operations(op, *args)
        return getattr(self.operations, op)(*args)

    def do(self, op: str, *args: Any) -> int:
        """Carry out an operation that returns nothing, 0 or, as in C, a negative errno."""
        result = self.ask(op, *args)
        if isinstance(result, int) and result < 0:
            raise fail(-result if result > -1000 else errno.ERANGE)
        return result if isinstance(result, int) else 0

    def do_or_fail(self, op: str, number: int, *args: Any) -> None:
        """Carry out an operation whose ENOSYS the kernel turns into another error."""
        try:
            self.do(op, *args)
        except OSError as error:
            if error.errno != errno.ENOSYS:
                raise
            raise fail(number) from error

    def do_if_there(self, op: str, *args: Any) -> None:
        """Carry out an operation whose ENOSYS the kernel takes for success."""
        try:
            self.do(op, *args)
        except OSError as error:
            if error.errno != errno.ENOSYS:
                raise

    def answer_for(self, op: str, error: Exception) -> OSError:
        """The error a caller gets: errno of an OSError, else EINVAL and a log entry per place."""
        if isinstance(error, OSError) and isinstance(error.errno, int) and error.errno > 0:
            # FuseOSError(ENOENT) is no FileNotFoundError, which those who call us may expect
            return error if type(error).__module__ == "builtins" else fail(error.errno)
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        place = (trace.tb_frame.f_code.co_filename, trace.tb_lineno) if trace else ("", 0)
        site = (type(error).__name__, *place)
        if site not in self._logged:
            self._logged.add(site)
            log.error("operation %s failed, the caller gets EINVAL", op, exc_info=error)
        return fail(errno.EINVAL)

    def end(self, failure: BaseException | None = None) -> None:
        """End the file system from inside: from now on calls fail with ENOTCONN."""
        if not self.ended:
            self.ended, self.failure = True, failure
            if self.on_end is not None:
                self.on_end()

    def text(self, name: bytes) -> str:
        """A name as the object gets it."""
        return name.decode(self.options.encoding, self.errors)

    def bytes_of(self, name: str | bytes) -> bytes:
        """A name as the VM gets it."""
        return name if isinstance(name, bytes) else name.encode(self.options.encoding, self.errors)

    def path(self, path: bytes, fh: FileHandle = True) -> str | None:
        """The path to give where the object may do without one if it has a handle."""
        return None if fh is not None and self.options.nopath else self.text(path)

    # --- life ----------------------------------------------------------------------------------

    def init(self) -> None:
        """init_with_config or init, once. What either raises refuses the mount."""
        if self._started:
            return
        try:
            self.carry(self._initialise)
        except OSError:
            raise
        except Exception as error:
            log.error("init failed", exc_info=error)
            text = f"init failed: {type(error).__name__}: {error}"
            raise OSError(errno.EINVAL, text) from error
        except BaseException as error:
            raise OSError(errno.EINVAL, f"init ended the program: {error!r}") from error
        self._started = True

    def _initialise(self) -> None:
        if self.mfusepy and self.has("init_with_config"):
            config = config_of(self.options)
            self.operations.init_with_config(connection(), config)
            self._apply(options_of(config, self.options))
        elif self.has("init"):
            self.ask("init", "/")

    def destroy(self) -> None:
        """Tell the object once that it is no longer used, if `init` was called."""
        if not self._started:
            return
        self._started = False
        if self.has("destroy"):
            try:
                self.carry(self.ask, "destroy", "/")
            except Exception as error:
                self.answer_for("destroy", error)
            except BaseException as error:
                self.failure = self.failure or error


def ignored(method: Any) -> bool:
    """Tell whether mfusepy's Operations marks a method as one that isn't there."""
    return bool(getattr(method, "libfuse_ignore", False))


def takes_flags(operations: Any) -> bool:
    """mfusepy gives create the flags unless it takes exactly a path and a mode."""
    create = getattr(operations, "create", None)
    try:
        return create is not None and len(inspect.signature(create).parameters) != 2
    except (TypeError, ValueError):
        return True


def _of_operations(method: Any) -> bool:
    """Tell whether a function is that of the class Operations of a FUSE module."""
    name, module = getattr(method, "__qualname__", ""), getattr(method, "__module__", "")
    return bool(name.startswith("Operations.") and module in _MODULES)


def dialect_of(operations: Any) -> str:
    """Return "mfusepy" for an object of a class derived from mfusepy's Operations."""
    for kind in type(operations).__mro__:
        if kind.__name__ == "Operations" and kind.__module__ == "mfusepy":
            return "mfusepy"
    return "fusepy"
