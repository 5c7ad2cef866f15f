"""Finding and importing modules, and the pluggy manager that speaks to them.

Imports are inside the functions: a VM without modules doesn't pay for them.
"""

from __future__ import annotations

import itertools
import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from core_accel.lazy import logger
from umvm.errors import NotFound, UmvmError, UsageError
from umvm.specs import is_path

if TYPE_CHECKING:
    import importlib.metadata

    import pluggy

log = logger(__name__)

GROUP = "umvm.modules"
"""The entry point group by which installed packages offer modules."""

_FROM_FILE = "_umvm_file"
_serial = itertools.count(1)


def installed() -> dict[str, importlib.metadata.EntryPoint]:
    """The installed modules by name."""
    from importlib import metadata

    return {entry.name: entry for entry in metadata.entry_points(group=GROUP)}


def installed_commands() -> list[Any]:
    """Collect the click commands of all installed modules; broken modules are logged."""
    commands: list[Any] = []
    for name, entry in installed().items():
        try:
            provide = getattr(entry.load(), "umvm_commands", None)
            commands.extend(provide() if provide is not None else ())
        except Exception:
            log.warning("module %s offers no commands", name, exc_info=True)
    return commands


def name_of(spec: str) -> str:
    """The name of a module that is given by name or by file."""
    name = os.path.basename(spec).removesuffix(".py") if is_path(spec) else spec
    if not name:
        raise UsageError(f"module without a name: {spec!r}")
    return name


def import_module(spec: str, *, fresh: bool) -> ModuleType:
    """Import a module by entry point name or from a file; `fresh` runs its present code.

    **Errors** NotFound: there is none; whatever its code raises.
    """
    if is_path(spec):
        return _import_file(spec)
    entry = installed().get(spec)
    if entry is None:
        raise NotFound(f"no module named {spec!r} is installed")
    plugin = _import_again(entry.module) if fresh else entry.load()
    if not isinstance(plugin, ModuleType):
        raise UmvmError(f"module {spec}: its entry point is not a Python module")
    return plugin


def forget(plugin: ModuleType) -> None:
    """Drop a module that came from a file; installed ones stay importable."""
    if plugin.__name__.startswith(_FROM_FILE):
        sys.modules.pop(plugin.__name__, None)


def plugin_manager() -> pluggy.PluginManager:
    """A pluggy manager that knows our hooks.

    Every function `umvm_*` is a hook, marked or not, so that a misspelt one is found
    (`check_pending`).
    """
    import inspect

    import pluggy

    from umvm import hookspecs

    class Manager(pluggy.PluginManager):
        def parse_hookimpl_opts(self, plugin: object, name: str) -> Any:
            marked = super().parse_hookimpl_opts(plugin, name)
            if (
                marked is None
                and name.startswith("umvm_")
                and inspect.isfunction(getattr(plugin, name))
            ):
                return dict.fromkeys(("wrapper", "hookwrapper", "optionalhook"), False) | {
                    "tryfirst": False,
                    "trylast": False,
                    "specname": None,
                }
            return marked

    manager = Manager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    return manager


def _import_file(path: str) -> ModuleType:
    """Run a file as a module of its own; compiled here, as .pyc files go by whole seconds."""
    try:
        with open(path, "rb") as file:
            source = file.read()
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"no module file {path}") from None
    plugin = ModuleType(f"{_FROM_FILE}{next(_serial)}_{name_of(path)}")
    plugin.__file__ = path
    sys.modules[plugin.__name__] = plugin
    try:
        exec(compile(source, path, "exec"), plugin.__dict__)
    except BaseException:
        forget(plugin)
        raise
    return plugin


def _import_again(name: str) -> ModuleType:
    """Run an installed module's file again; if that works it replaces the imported one."""
    import importlib
    import importlib.util

    importlib.invalidate_caches()
    found = importlib.util.find_spec(name)
    if found is None or found.loader is None:
        raise NotFound(f"{name} can't be found any more")
    plugin = importlib.util.module_from_spec(found)
    found.loader.exec_module(plugin)
    sys.modules[name] = plugin
    return plugin
