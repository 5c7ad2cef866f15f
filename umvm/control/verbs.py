"""What a control client can ask of a VM: one function a verb, looked up in one table."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from umvm.control import protocol
from umvm.errors import UsageError

Args = dict[str, Any]


def dispatch(vm: Any) -> Callable[[str, Args, list[int]], object]:
    """Return the dispatcher of `vm` for `Server`."""

    def answer(verb: str, args: Args, fds: list[int]) -> object:
        handler = VERBS.get(verb)
        if handler is None:
            of_module = vm.manager.verb(verb)
            if of_module is None:
                raise UsageError(f"unknown verb {verb!r}")
            return of_module(dict(args))
        try:
            return handler(vm, _Arguments(args), fds)
        except _Missing as error:
            raise UsageError(f"{verb}: argument {error} is missing or malformed") from None

    return answer


class _Missing(Exception):
    """An argument isn't there, or has the wrong type."""


class _Arguments(Args):
    """The arguments of one request, checked as they are taken."""

    def text(self, key: str) -> str:
        value = self.get(key)
        if not isinstance(value, str):
            raise _Missing(key)
        return value

    def path(self, key: str) -> bytes:
        """An absolute path; relative ones are taken from the client's `cwd`."""
        cwd = self.text("cwd") if "cwd" in self else "/"
        try:
            path = os.fsencode(os.path.join(cwd, self.text(key)))
        except UnicodeEncodeError:
            raise _Missing(key) from None
        if b"\0" in path or not path.startswith(b"/"):
            raise _Missing(key)
        return path

    def flag(self, key: str) -> bool:
        return bool(self.get(key, False))

    def options(self) -> dict[str, str]:
        value = self.get("options") or {}
        if not isinstance(value, dict):
            raise _Missing("options")
        return {str(key): str(item) for key, item in value.items()}


def _insmod(vm: Any, args: _Arguments, fds: list[int]) -> object:
    info = vm.manager.load(args.text("spec"), args.options(), permanent=args.flag("permanent"))
    return info._asdict()


def _rmmod(vm: Any, args: _Arguments, fds: list[int]) -> object:
    vm.manager.unload(args.text("name"), force=args.flag("force"))
    return None


def _reload(vm: Any, args: _Arguments, fds: list[int]) -> object:
    return vm.manager.reload(args.text("name"))._asdict()


def _lsmod(vm: Any, args: _Arguments, fds: list[int]) -> object:
    return [info._asdict() for info in vm.manager.list()]


def _space(vm: Any) -> dict[str, Any]:
    """The argument for methods that work in the view of who asks; none: in the VM's."""
    from umvm.guest.children import space_of_peer

    peer = protocol.caller.get()
    space = space_of_peer(vm, None if peer is None else peer.pid)
    return {} if space is None else {"space": space}


def _mount(vm: Any, args: _Arguments, fds: list[int]) -> object:
    space = _space(vm)
    source = args.text("source")
    if space and source.startswith("/") and args.text("type") != "bind":
        from umvm.guest.children import host_source

        source = host_source(vm, source, space["space"])
    vm.mount(args.text("type"), source, args.path("target"), args.options(), **space)
    return None


def _child(vm: Any, args: _Arguments, fds: list[int]) -> object:
    """Let the process that asks, a guest, go on in a view of its own (`umvm run` in a VM)."""
    from umvm.guest.children import child

    peer = protocol.caller.get()
    if peer is None or peer.pid not in vm.guest_pids():
        raise UsageError("child: only for guests")
    return child(vm, peer.pid, args)


def _fuse_serve(vm: Any, args: _Arguments, fds: list[int]) -> object:
    """Mount what a guest serves over descriptor 0 (umvm.standin)."""
    from umvm.standin.remote import serve

    serve(vm, args.text("source"), args.path("target"), args.options(), fds, **_space(vm))
    return None


def _umount(vm: Any, args: _Arguments, fds: list[int]) -> object:
    vm.umount(args.path("target"), args.flag("force"), args.flag("lazy"), **_space(vm))
    return None


def _mounts(vm: Any, args: _Arguments, fds: list[int]) -> object:
    return [_plain(mount) for mount in vm.mounts(**_space(vm))]


def _ps(vm: Any, args: _Arguments, fds: list[int]) -> object:
    space = _space(vm).get("space")
    table = {} if space is None or space.table is vm.mount_table else {"table": space.table}
    return [_plain(process) for process in vm.processes(**table)]


def _info(vm: Any, args: _Arguments, fds: list[int]) -> object:
    from umvm._version import __version__

    return {
        "version": __version__,
        "environment": getattr(vm, "environment", {}),
        "name": getattr(vm, "name", None),
        "pid": os.getpid(),
        "processes": len(vm.processes()),
        "mounts": len(vm.mounts()),
        "modules": [info.name for info in vm.manager.list()],
        "directory": _directory(vm),
        "engine": getattr(vm, "engine_name", "notify"),
        "counts": _counts(getattr(vm, "engine", None)),
    }


def _directory(vm: Any) -> str | None:
    """Where `umvm exec` starts; None: where it is."""
    spaces = getattr(vm, "spaces", None)
    return "/" if spaces is not None and spaces.main.root != b"/" else None


def _counts(engine: Any) -> dict[str, int]:
    """What the engine, and the agents in the guests, have counted."""
    if engine is None:
        return {}
    passed, claimed, workers = engine.counts()
    agents = engine.agent.area.counts() if hasattr(engine, "agent") else {}
    return {"passed": passed, "claimed": claimed, "workers": workers, **agents}


def _attach(vm: Any, args: _Arguments, fds: list[int]) -> object:
    """Serve one more process tree: descriptor 0 is its seccomp listener."""
    taken = fds[:]
    fds.clear()
    return vm.attach(dict(args), taken)


def _become(vm: Any, args: _Arguments, fds: list[int]) -> object:
    """Make a guest process another user's."""
    from umvm.become import grant

    ids = [args.get(name) for name in ("pid", "uid", "gid")] + list(args.get("groups", ()))
    numbers = [n for n in ids if isinstance(n, int) and 0 <= n < 0xFFFFFFFF]
    if len(numbers) != len(ids):
        raise UsageError("become: ids are numbers")
    grant(vm, numbers[0], numbers[1], numbers[2], tuple(numbers[3:]))
    return None


def _shutdown(vm: Any, args: _Arguments, fds: list[int]) -> object:
    vm.shutdown()
    return None


VERBS: dict[str, Callable[[Any, _Arguments, list[int]], object]] = {
    "insmod": _insmod,
    "rmmod": _rmmod,
    "reload": _reload,
    "lsmod": _lsmod,
    "mount": _mount,
    "fuse_serve": _fuse_serve,
    "umount": _umount,
    "child": _child,
    "mounts": _mounts,
    "ps": _ps,
    "info": _info,
    "attach": _attach,
    "become": _become,
    "shutdown": _shutdown,
}


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """Make a row that JSON can carry: byte strings become text, as os.fsdecode does."""
    return {k: os.fsdecode(v) if isinstance(v, bytes) else v for k, v in row.items()}
