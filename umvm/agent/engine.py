"""The engine of a VM whose guests have an agent: the same interface as `core_accel.engine.Engine`.

It tells the agents what it tells the engine, and looks at the calls of programs that have none,
as far as they change what agents know.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from core_accel.engine import Engine
from core_accel.lazy import logger, pattern
from core_accel.owners import Owners
from core_accel.pathwalk import View
from core_accel.request import Reply, Request
from umvm.agent.cache import SHARE, default_directory
from umvm.agent.patching import Patcher
from umvm.agent.service import Agent, shares_memory
from umvm.guest.marks import Marks
from umvm.guest.mounts import Where
from umvm.guest.process import status
from umvm.syscalls.kinds import SOCKETS
from umvm.syscalls.table import nr

if TYPE_CHECKING:
    from core_accel.fabric import SocketTable

log = logger(__name__)

_SOCKETS = {nr(name) for name in SOCKETS}
_EXEC = ("execve", "execveat")
_IDS = ("getuid", "geteuid", "getgid", "getegid")
_EXECVE = nr("execve")
_OWN = (
    rb"^[0-9a-f]+(?:-[0-9a-f]+)? [^\n]*%s/(?:l/\d\d|area)(?: [^\n]*)?\n"
    rb"(?:(?![0-9a-f]+(?:-[0-9a-f]+)? )[^\n]*\n)*"
)
"""Mappings of the loader and the area in maps, smaps (with the lines that follow) and numa_maps."""
_CHDIR = ("chdir", "fchdir")
_MOVES = ("rename", "renameat", "renameat2", "link", "linkat", "symlink", "symlinkat")
_REMOVES = ("unlink", "unlinkat", "rmdir", "chmod", "fchmodat")


class AgentEngine:
    """An engine, and the agents' side of it."""

    def __init__(
        self,
        kinds: Mapping[int, tuple[int, int, tuple[int, ...], tuple[int, ...]]],
        handler: Callable[[Request], Reply | None],
        on_gone: Callable[[int], None],
        shadow: bytes,
        on_expected: Callable[[int], object] | None = None,
        must_patch: bool = False,
        marks: Marks | None = None,
    ) -> None:
        """As `Engine`; `shadow` is the VM's directory; `must_patch`: without a cache of patched
        programs there is to be no agent; when `marks` change, agents are told.

        **Errors** OSError: no cache, no room, or programs can't be executed in the shadow
        directory.
        """
        if os.statvfs(shadow).f_flag & os.ST_NOEXEC:
            raise PermissionError(f"{os.fsdecode(shadow)}: programs can't be executed there")
        cache = default_directory()
        self._hooks: set[int] = set()
        self._loaders = shadow + b"/l/"
        self._own_mappings = pattern(_OWN % re.escape(shadow), re.MULTILINE)
        self.agent = Agent(shadow, os.fsencode(cache))
        self.patcher = Patcher(self.agent.area, cache) if must_patch else self._patcher(cache)
        self._handler = handler
        self._sockets = False
        self._looks: dict[int, Callable[[Request], object]] = {
            **{nr(name): self._chdir for name in _CHDIR},
            **{nr(name): self._moves for name in _MOVES},
        }
        if self.patcher is not None:
            self._looks[nr("mmap")] = self.patcher.see
        self._redirects = False
        self._always = {*self._looks, *map(nr, _EXEC)}
        self._engine = Engine(kinds, self._handle, on_gone, on_expected)
        self._engine.set_answered(self.agent.area.answered())
        self._named = False
        self._ids = set(map(nr, _IDS))
        self._owned: set[int] = set()
        self.agent.set_views([View([(b"/", 0), (b"/proc", 1)])])
        if os.environ.get(SHARE):
            self.agent.area.set_cautious()
        self.set_hooks(())
        self.set_state(0, 0)
        if marks is not None:
            marks.changed = self._marked

    def _patcher(self, cache: Path) -> Patcher | None:
        try:
            return Patcher(self.agent.area, cache)
        except OSError as error:
            log.warning("programs are not patched, so all calls are notified: %s", error)
            return None

    def first(self, paths: list[bytes], walk: Callable[[bytes], Where]) -> list[bytes]:
        """What the first guest is to execute, so that nobody has to look at that: candidates.

        `paths` are those of execvp(3); `walk` resolves a path in the view. If nothing concerns the
        program found, it is loaded with the agent; else it is executed as any other.
        """
        if self._hooks:
            return paths
        for path in paths:
            try:
                where = walk(path)
            except OSError:
                continue
            if where.mount is not None or not path.startswith(b"/"):
                return paths
            loader = self.agent.load(os.getpid(), where.host, path)
            return paths if loader is None else [loader, *paths]
        return paths

    def _handle(self, req: Request) -> Reply | None:
        if req.nr == _EXECVE and not self._hooks and self._is_loader(req):
            return None
        look = self._looks.get(req.nr)
        if look is not None:
            look(req)
        return self._handler(req)

    def _is_loader(self, req: Request) -> bool:
        return req.string(req.args[0]).startswith(self._loaders)

    def _chdir(self, req: Request) -> None:
        self.agent.area.cwd_moved()

    def _marked(self, pid: int) -> None:
        if shares_memory(pid):
            self.agent.area.set_cautious()
        self.agent.area.marked()

    def _moves(self, req: Request) -> None:
        self.agent.area.forget()

    def load(self, req: Request, program: bytes, name: bytes, front: list[bytes]) -> bytes | None:
        """What the caller of execve is to execute to run the host's `program`; None: itself.

        `name` and `front`: `Agent.load`. A process under a debugger gets no loader, so that
        breakpoints land, and neither does one with a seccomp filter of its own: it may kill for
        calls of the loader's.
        """
        try:
            fields = status(req.tid)
        except OSError:
            return None
        if int(fields.get(b"TracerPid", b"0")) or int(fields.get(b"Seccomp_filters", b"1")) > 1:
            return None
        return self.agent.load(req.tid, program, name, front)

    def unpatched(self, maps: bytes) -> bytes:
        """A file of /proc that tells of mappings, without the loader and the area, and with the
        original files in place of patched copies."""
        shown = self._own_mappings.sub(b"", maps)
        return shown if self.patcher is None else self.patcher.unpatched(shown)

    # --- as Engine -------------------------------------------------------------------------------

    def add_listener(self, fd: int, workers: int = 2) -> None:
        """As `Engine.add_listener`."""
        self._engine.add_listener(fd, workers)

    def set_views(self, views: list[View]) -> None:
        """As `Engine.set_views`."""
        self._engine.set_views(views)
        self.agent.set_views(views)
        if not self._redirects and (len(views) > 1 or any(view.binds() for view in views)):
            self._redirects = True
            self._looks.update({nr(name): self._moves for name in _REMOVES})
            self._always |= set(self._looks)
            self._engine.set_hooks(self._hooks | self._always)

    def set_place(self, number: int, view: int, cwd: int) -> None:
        """As `Engine.set_place`."""
        self._engine.set_place(number, view, cwd)
        self.agent.area.set_place(number, view, cwd)

    def set_answers(self, on: bool) -> None:
        """As `Engine.set_answers`."""
        self._engine.set_answers(on)

    def set_shadow(self, prefix: bytes) -> None:
        """As `Engine.set_shadow`."""
        self._engine.set_shadow(prefix)

    def set_state(self, descriptors: int, virtual_cwd: int) -> None:
        """As `Engine.set_state`; here /proc always has something of ours, so it always looks."""
        self._state = descriptors, bool(virtual_cwd)
        self.agent.area.set_descriptors(descriptors, bool(virtual_cwd) or self._named)
        self._engine.set_state(descriptors, 1)

    def set_hooks(self, numbers: Iterable[int]) -> None:
        """As `Engine.set_hooks`."""
        self._hooks = set(numbers)
        self._engine.set_hooks(self._hooks | self._always)
        self._tell_hooks()

    def set_owners(self, owners: Owners | None, numbers: Iterable[int]) -> None:
        """As `Engine.set_owners`."""
        self._owned = set(numbers)
        if owners is not None:
            owners.set_hint(*self.agent.area.owners(), self._owned)
        else:
            self.agent.area.no_owners()
        self._engine.set_owners(owners, self._owned)
        self._tell_hooks()

    def _tell_hooks(self) -> None:
        """While there are sockets to be asked about, agents ask about all sockets."""
        of_sockets = _SOCKETS if self._sockets else set()
        self.agent.area.set_hooks(self._hooks | self._owned | of_sockets)

    def add_socket(self, inode: int) -> None:
        """As `Engine.add_socket`."""
        self._engine.add_socket(inode)
        if not self._sockets:
            self._sockets = True
            self._tell_hooks()

    def drop_socket(self, inode: int) -> None:
        """As `Engine.drop_socket`."""
        self._engine.drop_socket(inode)

    def set_socket_table(self, table: SocketTable) -> None:
        """As `Engine.set_socket_table`."""
        self._engine.set_socket_table(table)

    def set_proc_names(self, names: Iterable[bytes]) -> None:
        """As `Engine.set_proc_names`; agents look at paths while there are any."""
        given = list(names)
        self._engine.set_proc_names(given)
        self._named = bool(given)
        self.set_state(*self._state)

    def set_identity(self, numbers: Iterable[int]) -> None:
        """As `Engine.set_identity`."""
        given = set(numbers)
        self._engine.set_identity(given)
        self.agent.area.set_identity(self._ids <= given)

    def set_record(self, number: int, ids: Sequence[int], groups: Sequence[int]) -> None:
        """As `Engine.set_record`."""
        self._engine.set_record(number, ids, groups)
        self.agent.area.set_record(number, ids)

    def watch(self, what: int) -> None:
        """As `Engine.watch`."""
        self._engine.watch(what)

    def peer(self, pid: int) -> int:
        """As `Engine.peer`."""
        return self._engine.peer(pid)

    def set_expected(self, tids: Iterable[int]) -> None:
        """As `Engine.set_expected`."""
        self._engine.set_expected(tids)

    def watch_exec(self, tid: int, tgid: int, values: Mapping[int, int]) -> None:
        """As `Engine.watch_exec`."""
        self._engine.watch_exec(tid, tgid, values)

    def forget_paths(self) -> None:
        """As `Engine.forget_paths`."""
        self._engine.forget_paths()
        self.agent.area.forget()

    def counts(self) -> tuple[int, int, int]:
        """As `Engine.counts`."""
        return self._engine.counts()

    def close(self) -> None:
        """Stop analysing."""
        if self.patcher is not None:
            self.patcher.close()
