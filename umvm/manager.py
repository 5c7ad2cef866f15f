"""The module manager: load, start, commit routes, stop.

Module code (import, umvm_start, umvm_stop, process events) runs without the manager's lock: a
module that never returns holds up its own `insmod` or `rmmod`, and nothing else. Until then its
name is taken, in the state `loading`, `reloading` or `going`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from core_accel.lazy import logger, start_logging
from umvm import plugins
from umvm.errors import Busy, Exists, NotFound, UmvmError
from umvm.routes import (
    FileSystemFactory,
    FsType,
    Identity,
    Route,
    SyscallClass,
    SyscallHandler,
    Verb,
)
from umvm.specs import is_path
from umvm.syscalls.classes import expand

if TYPE_CHECKING:
    import pluggy

    from umvm.interfaces.identity import Identity as IdentityObject

log = logger(__name__)

EVENTS = ("umvm_process_started", "umvm_process_exec", "umvm_process_exited")
LOADING, LIVE, RELOADING, GOING = "loading", "live", "reloading", "going"
SERVING = (LIVE, RELOADING)


class Host(Protocol):
    """What the manager needs of the VM."""

    def commit_hooks(
        self,
        hooks: dict[str, list[Callable[..., Any]]],
        identity: IdentityObject | None,
        events: Iterable[str],
        /,
    ) -> object:
        """Replace the system call hooks, by system call name, first asked first; the identity that
        is active; and the events that are listened to."""

    def mounts_of(self, module: str, /) -> int:
        """Return the number of mounts and sockets that a module serves."""

    def mounts(self) -> list[dict[str, Any]]:
        """Describe the mounts; `module` and `target` are used here."""

    def umount(self, target: bytes, force: bool, lazy: bool, /) -> object:
        """Remove a mount."""


class ModuleInfo(NamedTuple):
    """One line of `umvm lsmod`."""

    name: str
    state: str
    uses: int
    permanent: bool
    filesystems: tuple[str, ...]
    doc: str


class _Module:
    """A module and what it answers for."""

    def __init__(self, name: str, spec: str, options: dict[str, str], permanent: bool) -> None:
        self.name, self.spec, self.options, self.permanent = name, spec, options, permanent
        self.state = LOADING
        self.plugin: ModuleType | None = None
        self.filesystems: dict[str, FileSystemFactory] = {}
        self.hooks: list[SyscallClass] = []
        self.identity: IdentityObject | None = None
        self.verbs: dict[str, Callable[[dict[str, Any]], object]] = {}


class ModuleManager:
    """The modules of one VM. Safe to call from any thread."""

    def __init__(self, vm: Host) -> None:
        self.filesystems: dict[str, tuple[str, FileSystemFactory]] = {}
        self._vm = vm
        self._modules: dict[str, _Module] = {}
        self._listeners: dict[str, list[_Module]] = {}
        self._lock = threading.RLock()
        self._plugins: pluggy.PluginManager | None = None

    def load(
        self, spec: str, options: Mapping[str, str] | None = None, permanent: bool = False
    ) -> ModuleInfo:
        """Load a module by entry-point name, or from a `.py` file, and start it.

        **Errors** Exists: it is loaded. NotFound: there is none. UmvmError: it failed to start.
        """
        name = plugins.name_of(spec)
        module = _Module(name, spec, dict(options or {}), permanent)
        with self._lock:
            if name in self._modules:
                raise Exists(f"module {name} is already {_past(self._modules[name])}")
            self._modules[name] = module
        try:
            self._start(module, fresh=False)
            self._go_live(module)
        except BaseException:
            with self._lock:
                del self._modules[name]
            raise
        log.info("module %s loaded", name)
        return self._info(module)

    def unload(self, name: str, force: bool = False) -> None:
        """Take a module's routes away and stop it; with `force` its mounts go too.

        **Errors** NotFound: not loaded. Busy: permanent, or has mounts and not forced.
        """
        name = plugins.name_of(name)
        with self._lock:
            module = self._get(name)
            if module.permanent:
                raise Busy(f"module {name} is permanent")
            uses = self._vm.mounts_of(name)
            if uses and not force:
                what = "mounts or sockets" if uses > 1 else "mount or socket"
                raise Busy(f"module {name} is in use by {uses} {what}")
            module.state = GOING
            self._commit()
        try:
            if uses:
                self._unmount_all(name)
            self._stop(module)
        finally:
            with self._lock:
                del self._modules[name]
        log.info("module %s unloaded", name)

    def reload(self, spec: str) -> ModuleInfo:
        """Replace a module, given by name or file, by its present code; if that fails it stays.

        Mounts that exist keep the objects of the old code until they are mounted again.
        **Errors** NotFound: not loaded. UmvmError: the new code fails to start.
        """
        with self._lock:
            old = self._get(plugins.name_of(spec))
            new = _Module(old.name, spec if is_path(spec) else old.spec, old.options, old.permanent)
            old.state = RELOADING  # nobody else reloads or unloads it meanwhile
        try:
            self._start(new, fresh=True)
            self._go_live(new)
        except BaseException:
            old.state = LIVE
            raise
        self._stop(old)
        log.info("module %s reloaded", new.name)
        return self._info(new)

    def list(self) -> list[ModuleInfo]:
        """Describe the modules in load order."""
        with self._lock:
            return [self._info(module) for module in self._modules.values()]

    def filesystem(self, fstype: str) -> tuple[str, FileSystemFactory]:
        """Return (module name, factory) of a type, loading an installed module if need be.

        **Errors** NotFound: no loaded or installed module has such a type.
        """
        if fstype not in self.filesystems:
            self._autoload(fstype)
        try:
            return self.filesystems[fstype]
        except KeyError:
            raise NotFound(f"unknown file system type {fstype!r}") from None

    def wants_events(self) -> bool:
        """Does any module listen to process events?"""
        return bool(self._listeners)

    def verb(self, name: str) -> Callable[[dict[str, Any]], object] | None:
        """What answers a control request of a module's own; None: no module has it."""
        with self._lock:
            live = [module for module in self._modules.values() if module.state in SERVING]
        found = [module.verbs[name] for module in live if name in module.verbs]
        return found[-1] if found else None

    def process_started(self, process: object, parent: object) -> None:
        """Tell the modules about a new guest process."""
        self._event("umvm_process_started", process=process, parent=parent)

    def process_exec(self, process: object) -> None:
        """Tell the modules that a guest process runs another program."""
        self._event("umvm_process_exec", process=process)

    def process_exited(self, process: object, status: int | None) -> None:
        """Tell the modules that a guest process ended."""
        self._event("umvm_process_exited", process=process, status=status)

    def close(self) -> None:
        """Stop every module, newest first, permanent or not."""
        with self._lock:
            modules = [module for module in self._modules.values() if module.state in SERVING]
            self._modules.clear()
            self._commit()
        for module in reversed(modules):
            self._stop(module)

    # --- one module ------------------------------------------------------------------------------

    @property
    def _pm(self) -> pluggy.PluginManager:
        if self._plugins is None:
            self._plugins = plugins.plugin_manager()
        return self._plugins

    def _get(self, name: str) -> _Module:
        module = self._modules.get(name)
        if module is None:
            raise NotFound(f"module {name} is not loaded")
        if module.state != LIVE:
            raise Busy(f"module {name} is {module.state}")
        return module

    def _start(self, module: _Module, *, fresh: bool) -> None:
        """Import, register and start a module without committing its routes."""
        start_logging()
        try:
            plugin = module.plugin = plugins.import_module(module.spec, fresh=fresh)
            with self._lock:
                self._pm.register(plugin, f"{module.name} {id(module)}")
                self._pm.check_pending()
            module.filesystems.update(getattr(plugin, "FILESYSTEMS", {}))
            for route in self._call(module, "umvm_start", options=module.options) or ():
                _add_route(module, route)
        except BaseException as error:
            self._unregister(module)
            if isinstance(error, UmvmError) or not isinstance(error, Exception | SystemExit):
                raise
            if not isinstance(error, OSError):
                log.exception("module %s failed to start", module.name)
            raise _failed(module.name, error) from error

    def _go_live(self, module: _Module) -> None:
        """Put a started module's routes in place, of an older one's if there is one."""
        with self._lock:
            old = self._modules[module.name]
            self._modules[module.name] = module
            module.state = LIVE
            try:
                self._commit()
                return
            except Exception as error:
                self._modules[module.name] = old
                module.state = LOADING
                failure = UmvmError(f"module {module.name}: {error}")
        self._stop(module)
        raise failure

    def _call(self, module: _Module, hook: str, **arguments: object) -> Any:
        """Call a hook of one module only; `pm.hook` would speak to all of them."""
        others = [plugin for plugin in self._pm.get_plugins() if plugin is not module.plugin]
        return self._pm.subset_hook_caller(hook, others)(vm=self._vm, **arguments)

    def _stop(self, module: _Module) -> None:
        """Call umvm_stop and let go of the module's code."""
        try:
            self._call(module, "umvm_stop")
        except Exception:
            log.exception("module %s failed in umvm_stop", module.name)
        self._unregister(module)

    def _unregister(self, module: _Module) -> None:
        if module.plugin is None:
            return
        with self._lock:
            if self._pm.is_registered(module.plugin):
                self._pm.unregister(module.plugin)
        plugins.forget(module.plugin)

    def _info(self, module: _Module) -> ModuleInfo:
        doc = (getattr(module.plugin, "__doc__", None) or "").strip()
        return ModuleInfo(
            name=module.name,
            state=module.state,
            uses=self._vm.mounts_of(module.name),
            permanent=module.permanent,
            filesystems=tuple(module.filesystems),
            doc=doc.partition("\n")[0],
        )

    # --- all of them -----------------------------------------------------------------------------

    def _commit(self) -> None:
        """Recompute what the modules answer for; the newest is asked first."""
        live = [module for module in self._modules.values() if module.state in SERVING]
        filesystems = {
            fstype: (module.name, factory)
            for module in live
            for fstype, factory in module.filesystems.items()
        }
        hooks: dict[str, list[SyscallHandler]] = {}
        for module in reversed(live):
            for route in module.hooks:
                for syscall in expand(route.names):
                    hooks.setdefault(syscall, []).append(route.handler)
        listeners = {
            event: [module for module in live if hasattr(module.plugin, event)] for event in EVENTS
        }
        identities = [module.identity for module in live if module.identity is not None]
        before = self._listeners
        self._listeners = {event: modules for event, modules in listeners.items() if modules}
        try:
            self._vm.commit_hooks(hooks, identities[-1] if identities else None, self._listeners)
        except BaseException:
            self._listeners = before
            raise
        self.filesystems = filesystems

    def _autoload(self, fstype: str) -> None:
        """Load the installed module that has a file system type: first by its own name."""
        installed = plugins.installed()
        for name in sorted(installed, key=lambda name: name != fstype):
            if name in self._modules:
                continue
            try:
                provides = getattr(installed[name].load(), "FILESYSTEMS", {})
            except Exception:
                log.warning("module %s can't be imported", name, exc_info=name == fstype)
                continue
            if name == fstype or fstype in provides:
                try:
                    self.load(name)
                except Exists:
                    pass  # another mount was faster
            if fstype in self.filesystems:
                return

    def _unmount_all(self, name: str) -> None:
        for mount in reversed(self._vm.mounts()):
            if mount.get("module") == name:
                self._vm.umount(os.fsencode(mount["target"]), True, False)

    def _event(self, hook: str, **arguments: object) -> None:
        for module in self._listeners.get(hook, ()):
            try:
                self._call(module, hook, **arguments)
            except Exception:
                log.exception("module %s failed in %s", module.name, hook)


def _past(module: _Module) -> str:
    return "loaded" if module.state == LIVE else module.state


def _add_route(module: _Module, route: Route) -> None:
    match route:
        case FsType(name, factory):
            module.filesystems[name] = factory
        case SyscallClass():
            module.hooks.append(route)
        case Identity(answers):
            module.identity = answers
        case Verb(name, handler):
            module.verbs[name] = handler
        case _:
            raise UmvmError(
                f"module {module.name}: umvm_start returned {route!r}, which is not a route"
            )


def _failed(name: str, error: BaseException) -> UmvmError:
    return UmvmError(f"module {name}: {type(error).__name__}: {error}")
