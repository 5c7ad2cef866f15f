"""The stacks of one VM: kinds, mounted ones, and which one a process uses for a family."""

from __future__ import annotations

import importlib
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any, cast

from umvm import Reply, Request
from umvm.errors import NotFound, UsageError
from umvm.guest.abstract import AbstractNames
from umvm.interfaces.network import SOCK_FLAGS, NetworkStack, Socket, refusal
from umvm.routes import Route, SyscallClass
from umvm.specs import parse_net

from .stackfile import StackFile

KINDS = {"host": "host", "null": "null", "fabric": "fabric", "kernel": "kernel"}
"""Kind → the module beside this one; its `make(vm, argument, options)` makes a stack."""

FAMILIES = {
    "ipv4": socket.AF_INET,
    "ipv6": socket.AF_INET6,
    "unix": socket.AF_UNIX,
    "netlink": socket.AF_NETLINK,
    "packet": socket.AF_PACKET,
}
"""The families that a process can choose a stack for by name."""
_NAMING = tuple("bind connect sendto sendmsg sendmmsg getsockname getpeername".split())
"""The calls with names of AF_UNIX sockets."""
ANY = 0
_MARK = "stack"

Make = Callable[[Any, str, dict[str, str]], NetworkStack]
Choice = tuple[tuple[int, str], ...]
"""(family or ANY, name of the stack), sorted."""


class _Gone(NetworkStack):
    """The stack of a process whose stack was unloaded: it mustn't fall back to another network."""

    def socket(self, req: Request, family: int, kind: int, protocol: int) -> None:
        if family != socket.AF_UNIX:
            raise refusal(family, kind)


_GONE = _Gone()


class Stacks:
    """The stacks of one VM by name, and the choice of each process."""

    def __init__(self, vm: Any, default: str, options: dict[str, str]) -> None:
        """`default` as KIND[:ARG][,opt=val…]. UsageError: no such kind, or a bad option."""
        self._vm = vm
        self._stacks: dict[str, NetworkStack] = {}
        kind, argument, own = parse_net(default)
        options = {**own, **options}
        self._private = _wants_private_names(options)
        for plain in ("host", "null"):
            if plain != kind or argument or options:
                self._stacks[plain] = self._make(plain, "", {})
        self._default = f"{kind}:{argument}" if argument else kind
        self._stacks[self._default] = self._make(kind, argument, options)
        vm.abstract = AbstractNames() if self._private else None
        self._chosen = False
        self._tell_engine()
        self._files: list[Any] = []
        self._mount_files()

    def _make(self, kind: str, argument: str, options: dict[str, str]) -> NetworkStack:
        name = KINDS.get(kind)
        if name is None:
            raise UsageError(f"there is no network stack {kind!r} (there are {', '.join(KINDS)})")
        try:
            module = importlib.import_module(f".{name}", __package__)
        except ModuleNotFoundError as error:
            raise UsageError(f"the network stack {kind!r} is not in this version") from error
        return cast(Make, module.make)(self._vm, argument, options)

    def routes(self) -> Sequence[Route]:
        """What the VM's first stack answers for beside sockets."""
        routes = list(self._stacks[self._default].routes())
        if self._private:  # the families do it, if they are asked
            routes.append(SyscallClass(_NAMING, lambda req: None))
        return routes

    # --- the calls -------------------------------------------------------------------------------

    def of(self, tid: int, family: int) -> NetworkStack:
        """The stack that a thread's process uses for a family."""
        choice: dict[int, str] = dict(self._vm.marks.get(tid, _MARK) or ())
        name = choice.get(family) or choice.get(ANY) or self._default
        return self._stacks.get(name, _GONE)

    def socket(self, req: Request) -> Reply | None:
        """socket(2)."""
        family, kind, protocol = (_signed(number) for number in req.args[:3])
        stack = self.of(req.tid, family)
        made = stack.socket(req, family, kind, protocol)
        if made is None:
            return None
        if made.socket is not None:
            self._vm.sockets.add(made.fd, made.socket)
        return Reply.fd(made.fd, bool(kind & SOCK_FLAGS & socket.SOCK_CLOEXEC))

    socket.of_stack = True  # type: ignore[attr-defined]  # the engine may answer in its place

    def _tell_engine(self) -> None:
        """Let the engine itself make the sockets of a first stack that all processes use."""
        shows = [s for s in self._stacks.values() if type(s).proc_net is not NetworkStack.proc_net]
        self._vm.show_net_in_proc(self.proc_net if shows else None)
        for stack in self._stacks.values():
            tell = getattr(stack, "make_first", None)
            if tell is not None:
                tell(stack is self._stacks.get(self._default) and not self._chosen)

    def socketpair(self, req: Request) -> Reply | None:
        """socketpair(2)."""
        family, kind, protocol = (_signed(number) for number in req.args[:3])
        self.of(req.tid, family).pair(req, family, kind, protocol)
        return None

    # --- mounts ----------------------------------------------------------------------------------

    def mount(self, source: str, options: dict[str, str]) -> StackFile:
        """A stack to be mounted; `source` is KIND[:ARG], or the name of a stack that exists."""
        if source in self._stacks and not options:
            return StackFile(self, self._stacks[source])
        kind, argument, own = parse_net(source)
        kind = os.path.basename(kind)  # made absolute where a file has that name
        stack = self._make(kind, argument, {**own, **options})
        if getattr(stack, "rules", None) is not None:
            stack.close()
            raise UsageError("rules are for a whole VM: give them with umvm run --net")
        if type(stack).proc_net is not NetworkStack.proc_net:
            self._vm.show_net_in_proc(self.proc_net)
        return StackFile(self, stack, owned=True)

    def uses(self, stack: NetworkStack) -> int:
        """How many sockets of a stack are open."""
        count: int = self._vm.sockets.used_by(stack)
        return count

    def open_sockets(self) -> int:
        """How many sockets of all stacks are open."""
        self._vm.sockets.sweep()
        return len(self._vm.sockets)

    def unmounted(self, stack: NetworkStack, owned: bool) -> None:
        """The mount is gone, and with it the stack if it was made for it."""
        for name in [n for n, s in self._stacks.items() if s is stack and n.startswith("/")]:
            del self._stacks[name]
        if owned:
            stack.close()

    def close(self) -> None:
        """Close all stacks."""
        for mount in self._files:
            if not mount.detached:
                self._vm.remove(mount, force=True)
        for stack in set(self._stacks.values()):
            stack.close()
        self._vm.abstract = None
        self._vm.show_net_in_proc(None)
        self._stacks.clear()

    # --- what commands ask -----------------------------------------------------------------------

    def names(self) -> dict[str, NetworkStack]:
        """All stacks by name: kinds, specs and paths."""
        for mount in list(self._vm.mount_table.all):
            if isinstance(mount.fs, StackFile):
                self._stacks[os.fsdecode(mount.point)] = mount.fs.stack
        return self._stacks

    def known(self, name: str) -> str:
        """A name that can be chosen. NotFound."""
        stacks = self.names()
        path = os.path.normpath(name) if name.startswith("/") else name
        if path not in stacks:
            known = ", ".join(sorted(stacks))
            raise NotFound(f"there is no network stack {name!r} (there are {known})")
        return path

    def choose(self, args: dict[str, Any]) -> dict[str, Any]:
        """Set the stack of the process `pid`, or of all; tell what there is."""
        name, pid = args.get("name"), args.get("pid")
        families: dict[str, str] = args.get("families") or {}
        if families and not isinstance(pid, int):
            raise UsageError("a stack for one family can be chosen for a command only")
        if isinstance(pid, int) and (isinstance(name, str) or families):
            choice: dict[int, str] = dict(self._vm.marks.get(pid, _MARK) or ())
            if isinstance(name, str):
                choice = {ANY: self.known(name)}
            for family, stack in families.items():
                choice[FAMILIES[family]] = self.known(stack)
            self._chosen = True
            self._tell_engine()
            self._vm.marks.set(pid, _MARK, tuple(sorted(choice.items())))
        elif isinstance(name, str):
            self._default = self.known(name)
            self._tell_engine()
        return {"default": self._default, "stacks": sorted(self.names())}

    def net(self, args: dict[str, Any]) -> Any:
        """`umvm net`: `op` and its arguments go to the stack that is on `network`, or is on one."""
        name, operation = args.pop("network", None), str(args.pop("op", ""))
        key = args.pop("host", None)
        for stack in [self._stacks.get(self._default), *self._stacks.values()]:
            method = getattr(stack, f"net_{operation}", None)
            if key not in (None, getattr(stack, "host_key", None)):
                continue
            if method is not None and name in (None, getattr(stack, "network_name", None)):
                return method(**args)
        what = f"the network {name}" if name else "a virtual network"
        raise NotFound(f"the VM isn't on {what}")

    # --- /etc ------------------------------------------------------------------------------------

    def proc_net(self, pid: int, name: str) -> bytes | None:
        """A file of /proc/PID/net, as the stack that the process uses for IPv4 has it."""
        return self.of(pid, socket.AF_INET).proc_net(name)

    def _mount_files(self) -> None:
        """Names: /etc/hosts and /etc/resolv.conf, where the default stack has some of its own."""
        from .etc import EtcFile

        for path, method in ((b"/etc/hosts", "hosts"), (b"/etc/resolv.conf", "resolv_conf")):
            if getattr(self._stacks[self._default], method)() is not None:
                file = EtcFile(self, path, method)
                name = os.fsdecode(os.path.basename(path))
                self._files.append(self._vm.mount_object(file, "net", name, path, {"ro": ""}, ""))


def _wants_private_names(options: dict[str, str]) -> bool:
    """Take the option `abstract` out. UsageError: its value."""
    value = options.pop("abstract", "shared")
    if value not in ("shared", "private"):
        raise UsageError(f"abstract is shared or private, not {value!r}")
    return value == "private"


def _signed(number: int) -> int:
    number &= 0xFFFFFFFF
    return number - (1 << 32) if number & 0x80000000 else number


__all__ = ["ANY", "FAMILIES", "KINDS", "Socket", "Stacks"]
