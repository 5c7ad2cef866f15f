"""Finds the class that a mount's source names, giving its file the stand-in for FUSE modules."""

from __future__ import annotations

import builtins
import contextlib
import importlib
import itertools
import os
import sys
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from umvm.errors import NotFound, UmvmError, UsageError
from umvm.specs import is_path
from umvm.standin import names

_serial = itertools.count(1)
_lock = threading.RLock()
_standins: dict[str, ModuleType] = {}


def find(source: str) -> Any:
    """Return what `FILE.py:NAME` or `package.module:NAME` names; NAME may have dots, or be absent.

    **Errors** NotFound: no such file, module or name. UmvmError: its code fails.
    """
    where, name = _split(source)
    if not where:
        raise UsageError("the source is FILE.py:CLASS or package.module:CLASS")
    try:
        with standin():
            module = _run_file(where) if is_path(where) else importlib.import_module(where)
    except (UmvmError, OSError):
        raise
    except ModuleNotFoundError as error:
        raise NotFound(f"{source}: {error}") from error
    except Exception as error:
        raise UmvmError(f"{source}: {type(error).__name__}: {error}") from error
    except SystemExit as error:
        raise UmvmError(f"{source}: it exits when loaded ({error.code})") from error
    if not name:
        return _only_class(module, where)
    found: Any = module
    try:
        for part in name.split("."):
            found = getattr(found, part)
    except AttributeError:
        raise NotFound(f"{where} has no {name!r}") from None
    return found


def _split(source: str) -> tuple[str, str]:
    """A file's name may have colons itself, so the whole is tried first."""
    if is_path(source) and os.path.exists(source):
        return source, ""
    where, _, name = source.rpartition(":")
    return (where, name) if where else (source, "")


def _run_file(path: str) -> ModuleType:
    """Run a file as a module of its own, its directory being importable meanwhile.

    It is not cached: mounting it again runs its present code.
    """
    try:
        with open(path, "rb") as file:
            code = compile(file.read(), path, "exec")
    except FileNotFoundError:
        raise NotFound(f"no program file {path}") from None
    stem = os.path.basename(path).removesuffix(".py")
    module = ModuleType(f"_umvm_fuse{next(_serial)}_{stem}")
    module.__file__ = path
    vars(module)["__builtins__"] = builtins  # the module, as a main program has it
    sys.modules[module.__name__] = module
    directory = os.path.dirname(os.path.abspath(path))
    sys.path.insert(0, directory)
    try:
        exec(code, vars(module))
    except BaseException:
        del sys.modules[module.__name__]
        raise
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(directory)
    return module


def _only_class(module: ModuleType, where: str) -> Any:
    """The one Operations class that a module defines itself."""
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and value.__module__ == module.__name__
        and any(base.__name__ == "Operations" for base in value.__mro__[1:])
    ]
    if len(found) != 1:
        named = ", ".join(kind.__name__ for kind in found) or "none"
        raise UsageError(f"{where}: name a class, {where}:CLASS (Operations classes: {named})")
    return found[0]


@contextlib.contextmanager
def standin() -> Iterator[None]:
    """While the block runs, `import fuse`, `fusepy` and `mfusepy` give the stand-in.

    Modules of these names that were imported before come back afterwards. Where there were none the
    stand-in stays, for imports that a file makes later, inside its functions.
    """
    with _lock:
        if not _standins:
            _standins.update({name: names.module(name) for name in names.MODULES})
        before = {name: sys.modules.get(name) for name in names.MODULES}
        sys.modules.update(_standins)
        try:
            yield
        finally:
            sys.modules.update({name: old for name, old in before.items() if old is not None})
