"""Who answers a claimed system call: the modules' hooks, the identity, then the call's family."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from core_accel.lazy import logger
from core_accel.request import Reply, Request
from umvm.guest.events import Events
from umvm.interfaces.identity import Identity, all_capabilities
from umvm.syscalls import table
from umvm.syscalls.classes import expand
from umvm.syscalls.context import program_of
from umvm.syscalls.kinds import SOCKETS

if TYPE_CHECKING:
    from umvm.syscalls.identity import Handler
    from umvm.vm import VirtualMachine

log = logger(__name__)

Hook = Callable[[Request], Reply | None]
_CLONES = ("clone", "clone3")
_EXEC = ("execve", "execveat")
_QUICK = (
    "getuid geteuid getgid getegid getresuid getresgid getgroups kill tkill tgkill rt_sigqueueinfo "
    "rt_tgsigqueueinfo connect listen socketpair sendmsg recvmsg getsockopt setsockopt "
    "uname getrlimit prlimit64"
).split()
"""What the engine itself may answer, or has to note, while an identity is active."""
_OF_SOCKETS = frozenset(table.nr(call) for call in SOCKETS)
_FAILED = Reply.error(errno.EIO)


class Calls:
    """The answering functions of one VM by system call number. A commit replaces them at once."""

    def __init__(self, vm: VirtualMachine, events: Events) -> None:
        self._vm = vm
        self._events = events
        self._seen: Callable[[int], None] | None = None
        self._hooks: dict[int, list[Hook]] = {}
        self._logged: set[tuple[object, ...]] = set()
        self._handlers: list[Any] = []
        self._asked: Iterable[int] = ()
        self._clones: set[int] = set()

    def commit(
        self,
        hooks: Mapping[str, Sequence[Hook]],
        active: Identity | None = None,
        wanted: Iterable[str] = (),
    ) -> None:
        """Replace the hooks, the identity and the process events that modules listen to.

        **Errors** UmvmError: a call is unknown or can't be hooked; nothing has changed then.
        """
        numbers = {
            table.nr(call): list(handlers)
            for name, handlers in hooks.items()
            for call in expand((name,))
        }
        quick: set[int] = set()
        owned: set[int] = set()
        clones: set[int] = set()
        if active is not None:
            clones = {table.nr(call) for call in _CLONES}
            owned = self._identify(numbers, active)
            hooked = {table.nr(call) for name in hooks for call in expand((name,))}
            quick = {table.nr(call) for call in _QUICK} - hooked
        wanted = frozenset(wanted)
        if "umvm_process_exec" in wanted:
            for call in _EXEC:
                numbers.setdefault(table.nr(call), []).append(self._exec)
        watching = bool(wanted - {"umvm_process_exec"})
        owned = {number for number in owned if len(numbers[number]) == 1}
        self._hooks = numbers
        self._vm.identity = self._vm.procs.identity = active
        self._vm.use_identity(active, set() if watching else quick)
        self._vm.procs.forget(0)
        with self._events.switched(watching):
            self._seen = self._events.seen if watching else None
            self._vm.engine.set_owners(self._vm.owners.table if owned else None, owned)
            self._asked = table.trapped_numbers() if watching else set(numbers) - owned
            self._clones = {number for number in clones if len(numbers[number]) == 1}
            self._vm.sockets.set_calls(() if watching else _of_nobody_else(hooks))
            self.watch_clones(watching)

    def watch_clones(self, on: bool) -> None:
        """Ask about new threads and processes, too: an identity wants to know only now and then."""
        self._vm.engine.set_hooks(
            set(self._asked) | self._clones if on else set(self._asked) - self._clones
        )

    def _identify(self, numbers: dict[int, list[Hook]], active: Identity) -> set[int]:
        """Add what an identity answers; the calls that the engine may answer for it."""
        from umvm.syscalls import ownercalls

        for calls in (_identity_calls(), ownercalls.CALLS):
            for call, handler in calls.items():
                hook: Hook = partial(_with_identity, self._vm, handler, active)
                numbers.setdefault(table.nr(call), []).append(hook)
        unknown = active.unknown()
        store = self._vm.owners.table
        first = active.first()
        every = all_capabilities()
        root = first.fsuid == 0 and first.effective & every == every
        ours = active.owner(os.geteuid(), os.getegid()) == (first.fsuid, first.fsgid)
        store.set_guests(root and unknown is not None, not ours)
        if unknown is None:
            return set()
        store.set_unknown(unknown.how, unknown.own, unknown.shown)
        return {table.nr(call) for call in ownercalls.CALLS}

    def answer(self, req: Request) -> Reply | None:
        """Answer a call; None: the kernel runs it. OSError: the guest gets that."""
        if req.tid <= 0:  # a thread that has died; 0 would mean ourselves to other calls
            return _FAILED
        if self._seen is not None:
            self._seen(req.tid)
        hooks = self._hooks.get(req.nr)
        if hooks is None:
            handler = (self._handlers or self._load())[req.nr]
            return None if handler is None else handler(self._vm, req)
        return self._ask(req, hooks)

    def listened(self, number: int) -> bool:
        """Is a module told of this call's programs after the hooks?"""
        return self._exec in self._hooks.get(number, ())

    def _load(self) -> list[Any]:
        """The families' functions by number; imported when the first call is claimed."""
        from umvm.syscalls.families import HANDLERS

        handlers: list[Any] = [None] * (max(row.nr for row in table.ROWS) + 1)
        for call, handler in HANDLERS.items():
            handlers[table.nr(call)] = handler
        self._handlers = handlers
        return handlers

    def pass_on(self, req: Request, hook: Hook) -> Reply | None:
        """What those who come after a hook answer, for a hook that wants to know."""
        hooks = self._hooks.get(req.nr, [])
        after = hooks.index(hook) + 1 if hook in hooks else 0
        return self._ask(req, hooks[after:])

    def _ask(self, req: Request, hooks: Sequence[Hook]) -> Reply | None:
        for hook in hooks:
            try:
                reply = hook(req)
                if reply is None:
                    continue
                if type(reply) is not Reply:
                    raise TypeError(f"{hook} returned {reply!r}, neither a Reply nor None")
            except OSError:
                raise
            except Exception as error:
                self._fault(req, hook, error)
                return _FAILED
            return reply
        handler = (self._handlers or self._load())[req.nr]
        return None if handler is None else handler(self._vm, req)

    def _exec(self, req: Request) -> None:
        """Tell the modules of an execve(2) or execveat(2) that will probably succeed."""
        program = program_of(self._vm, req)
        if program is not None:
            self._events.exec(req, program)

    def _fault(self, req: Request, hook: Hook, error: Exception) -> None:
        """Log a hook's exception, once for each place that it comes from."""
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        place = (trace.tb_frame.f_code, trace.tb_lineno) if trace else ()
        key = (type(error), *place)
        if key in self._logged:
            return
        self._logged.add(key)
        call = table.BY_NR[req.nr].name
        log.error("hook %r failed, %s of process %d gets EIO", hook, call, req.tid, exc_info=error)


def _of_nobody_else(hooks: Mapping[str, Sequence[Hook]]) -> set[int]:
    """The calls on sockets that the engine may answer: only network stacks have hooks on them."""
    foreign = {
        name for name, found in hooks.items() if not all(getattr(h, "of_stack", 0) for h in found)
    }
    made = {"socket"} if "socket" in hooks else set()
    return {table.nr(call) for call in (SOCKETS | made) - foreign}


def _identity_calls() -> Mapping[str, Handler]:
    """The calls that depend on who the guests are; imported when the first identity is active."""
    from umvm.syscalls.identities import CALLS

    return CALLS


def _with_identity(
    vm: VirtualMachine, handler: Handler, active: Identity, req: Request
) -> Reply | None:
    if req.nr in _OF_SOCKETS and vm.sockets.of(req.tid, req.args[0] & 0x7FFFFFFF) is not None:
        return None  # the family asks its stack
    return handler(vm, req, active)
