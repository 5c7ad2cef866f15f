"""One virtual machine: its mounts, modules, open files and the engine that serves its guests."""

from __future__ import annotations

import errno
import os
import signal
import stat
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from core_accel.engine import Engine
from core_accel.launch import Init
from core_accel.lazy import logger
from core_accel.request import Reply, Request
from umvm import standin
from umvm.calls import Calls, Hook
from umvm.errors import Busy, NotFound, UmvmError
from umvm.guest import bound, describe, procidentity
from umvm.guest.credentials import CredentialStore
from umvm.guest.events import Events
from umvm.guest.files import Files
from umvm.guest.images import Images
from umvm.guest.marks import Marks
from umvm.guest.mounts import FOLLOW, MISSING_OK, Mount, MountTable
from umvm.guest.proc import Proc
from umvm.guest.process import Processes, descendants, kill, same_rights, under_filter
from umvm.guest.shadow import Shadow
from umvm.guest.sockets import Sockets
from umvm.guest.spaces import DELETED, Space, Spaces
from umvm.guest.specials import Specials
from umvm.interfaces.filesystem import Caller, FileSystem, set_caller
from umvm.interfaces.identity import Identity
from umvm.manager import ModuleManager
from umvm.syscalls import table
from umvm.syscalls.kinds import KINDS

if TYPE_CHECKING:
    from umvm.agent.engine import AgentEngine
    from umvm.guest.abstract import AbstractNames
    from umvm.owners.store import Store

log = logger(__name__)

GENERIC = frozenset(
    "defaults rw ro suid nosuid dev nodev exec noexec relatime noatime strictatime async sync "
    "nodiratime _netdev user users owner group auto noauto nofail".split()
)
"""Mount options that the VM itself takes; the rest goes to the file system."""
SHUTDOWN_WAIT = 10.0


class VirtualMachine:
    """The state of one VM. Methods may be called from any thread.

    Made ready by the constructor; `engine.add_listener` gives it guests. `close` ends it.
    """

    def __init__(self, name: str, engine: str = "notify") -> None:
        """`engine`: "notify", "agent" for guests with an agent (umvm.agent), or "auto": that if it
        works here. **Errors** OSError: the agent doesn't, or there is no room."""
        self.name = name
        self.closing = False
        self.ended = threading.Event()
        self.roots: list[int] = []
        self.environment: dict[str, str] = {}
        self.names: dict[str, bytes] = {}
        self._lock, self._telling = threading.RLock(), threading.Lock()
        self._listeners = 0
        self.identity: Identity | None = None
        self.marks = Marks()
        self._quick: set[int] = set()
        self._quick_on = True
        self.creds = CredentialStore(self.marks, self.credentials_changed)
        self._owners: Store | None = None
        self.events = Events(self)
        self.calls = Calls(self, self.events)
        self.init = Init()
        self.shadow = Shadow(name)
        self.procs = Processes(self.creds)
        self.mount_table = MountTable(None, name)
        self.spaces = Spaces(self.marks, self.mount_table)
        self.files = Files(self.shadow, self.state_changed, self.released)
        self.specials = Specials(self.shadow, self.state_changed)
        self.images = Images(self.shadow)
        self.spaces.real = self.images.real
        self.spaces.members = self.guest_pids
        self.proc = Proc(self)
        self.engine = self._make_engine(engine)
        self.engine_name = "notify" if isinstance(self.engine, Engine) else "agent"
        self.engine.set_shadow(self.shadow.path + b"/")
        self.spaces.set_engine(self.engine)
        self.engine.set_answers(same_rights(os.getpid()))
        self.sockets = Sockets(self.engine.add_socket, self.engine.drop_socket)
        self.stacks: Any = None
        self.abstract: AbstractNames | None = None
        self.manager = ModuleManager(self)

    def _make_engine(self, kind: str) -> Engine | AgentEngine:
        if kind != "notify":
            from umvm.agent.engine import AgentEngine

            try:
                return AgentEngine(
                    KINDS, self.dispatch, self._gone, self.shadow.path, self.creds.arrived,
                    must_patch=kind == "auto", marks=self.marks,
                )  # fmt: skip
            except OSError as error:
                if kind == "agent":
                    raise
                log.info("no agent: %s", error)
        return Engine(KINDS, self.dispatch, self._gone, self.creds.arrived)

    # --- calls -----------------------------------------------------------------------------------

    def dispatch(self, req: Request) -> Reply | None:
        """Answer one claimed call; None: the kernel runs it."""
        if self.closing:
            kill(req.tid, signal.SIGKILL)
            return Reply.error(errno.ENOSYS)
        return self.calls.answer(req)

    def commit_hooks(
        self,
        hooks: Mapping[str, Sequence[Hook]],
        identity: Identity | None = None,
        events: Iterable[str] = (),
    ) -> None:
        """Replace what modules answer for, and the events they listen to (manager)."""
        self.calls.commit(hooks, identity, events)

    def state_changed(self) -> None:
        """Tell the engine how much is served, so that it knows what it needn't look at."""
        with self._telling:  # who counted first must not be heard last
            served = sum(len(table.all) for table in self.spaces.tables())
            opened = len(self.files)
            self.engine.set_state(opened + len(self.specials), 1 if served or opened else 0)

    def use_identity(self, active: Identity | None, quick: set[int]) -> None:
        """Another identity is active; `quick` are the calls on it that the engine may answer."""
        self._quick = set()
        self.creds.use(active)
        self._quick, self._quick_on = quick, True
        self._commit_proc_names()
        self.engine.set_identity(quick)
        self.marks.tell(self._tell_engine)

    def _tell_engine(self, number: int, record: dict[Hashable, Any]) -> None:
        if self.identity is not None:
            own = record.get(self.identity) or self.identity.first()
            self.engine.set_record(number, own[:8], own.groups)

    def show_in_proc(self, path: bytes, text: Callable[[], bytes] | None) -> None:
        """A file of /proc is to read as `text()`; None: as the kernel's again."""
        if text is None:
            self.proc.texts.pop(path, None)
        else:
            self.proc.texts[path] = text
        self._commit_proc_names()

    def show_net_in_proc(self, answer: Callable[[int, str], bytes | None] | None) -> None:
        """`answer(PID, NAME)` makes the text of a file in /proc/PID/net; None: as the kernel's."""
        self.proc.net = answer
        self._commit_proc_names()

    def _commit_proc_names(self) -> None:
        names = {os.path.basename(path) for path in self.proc.texts}
        if self.proc.net is not None:
            names.add(b"net/")
        self.engine.set_proc_names(names.union(procidentity.NAMES if self.identity else ()))

    def credentials_changed(self) -> None:
        """Tell the engine which threads it has to announce (`CredentialStore.arrived`)."""
        self.procs.forget(0)
        if self._owners is not None:
            self._owners.table.set_split(bool(self.creds.splits))
        self.engine.set_expected(self.creds.waited_for())
        if bool(self.creds.splits) == self._quick_on and self._quick:
            self._quick_on = not self.creds.splits
            self.engine.set_identity(self._quick if self._quick_on else ())
            self.calls.watch_clones(not self._quick_on)

    @property
    def owners(self) -> Store:
        """The owners of files as guests see them, made when it is first asked for."""
        with self._lock:
            if self._owners is None:
                from umvm.owners.store import Store

                self._owners = Store()
            return self._owners

    # --- guests ----------------------------------------------------------------------------------

    def add_guests(self, listener: int, pid: int) -> None:
        """Serve a process tree whose first process is `pid`; the listener is owned from now on."""
        with self._lock:
            self._listeners += 1
            self.roots.append(pid)
        self.engine.add_listener(listener)

    def _gone(self, listener: int) -> None:
        with self._lock:
            self._listeners -= 1
            if self._listeners == 0:
                self.ended.set()

    def attach(self, args: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """Serve the process tree of another `umvm exec`: descriptor 0 is its listener."""
        if self.closing or self.ended.is_set() or not fds:
            for fd in fds:
                os.close(fd)
            raise NotFound("the VM is ending")
        pid = int(args.get("pid", 0))
        if not same_rights(pid):
            self.engine.set_answers(False)
        if self.spaces.main is not self.spaces.first:
            self.spaces.enter(pid, self.spaces.main)
        self.add_guests(fds[0], pid)
        for fd in fds[1:]:
            os.close(fd)
        return {"pid": os.getpid()}

    def guest_environment(self, socket: str, extra: dict[str, str]) -> dict[str, str]:
        """The environment that guests start with."""
        given = {**os.environ, **extra}
        self.environment = {"UMVM_SOCKET": socket, "UMVM_NAME": self.name}
        return {**given, **self.environment, **standin.environment(given)}

    def guest_pids(self) -> list[int]:
        """The guests' process ids, as far as they can be found from the roots and our children."""
        return [pid for pid in descendants([os.getpid(), *self.roots]) if under_filter(pid)]

    def processes(self, table: MountTable | None = None) -> list[dict[str, Any]]:
        """Describe the guests, or those with a table of mounts, for `umvm ps`."""
        return describe.processes(self, table)

    def uid_of(self, pid: int, fields: dict[bytes, bytes]) -> int:
        """The effective user id that guests see a process have."""
        return self.creds.get(pid).euid if self.identity else int(fields[b"Uid"].split()[1])

    def named(self, link: bytes) -> Any:
        """What a link into the shadow directory stands for (mount, path, deleted), or None."""
        return self.files.named(link) or self.images.named(link) or self.specials.named(link)

    def shown(self, link: bytes, space: Space | None = None, hint: int | None = None) -> bytes:
        """A path as the guest sees it: a placeholder's link becomes the served path.

        `space`: as it is seen from its root; `hint`: the mount by which it was reached.
        """
        named = self.named(link)
        if named is None:
            link = self.images.real(link)
            if space is None or space.plain or not link.startswith(b"/"):
                return link
            path, deleted = link, b""
            if link.endswith(DELETED) and not os.path.lexists(link):
                path, deleted = link[: -len(DELETED)], DELETED
            return space.label(space.view.shown(path, hint)[0]) + deleted
        path = named.mount.outside(named.path)
        if space is not None:
            path = space.label(path)
        return path + DELETED if named.deleted else path

    def first(self, paths: list[bytes]) -> list[bytes]:
        """The files that the first guest is to try to execute; `paths`: those of execvp(3)."""
        if isinstance(self.engine, Engine):
            return paths
        return self.engine.first(paths, lambda path: self.walk(path, self.spaces.main))

    # --- mounts ----------------------------------------------------------------------------------

    def mount(
        self, fstype: str, source: str, target: bytes, options: dict[str, str],
        space: Space | None = None,
    ) -> Mount:  # fmt: skip
        """Mount a file system by its type. NotFound: unknown type; OSError: refused."""
        if fstype == "bind":
            return bound.bind(self, os.fsencode(source), target, options, space)
        module, factory = self.manager.filesystem(fstype)
        own = {key: value for key, value in options.items() if key not in GENERIC}
        _act_as_supervisor()
        try:
            fs = factory(source, own)
        except (OSError, UmvmError):
            raise
        except (ValueError, TypeError, KeyError) as error:
            raise UmvmError(f"{fstype}: {error}") from error
        return self.mount_object(fs, fstype, source, target, options, module, space)

    def mount_object(
        self, fs: FileSystem, fstype: str, source: str, target: bytes,
        options: dict[str, str], module: str, space: Space | None = None,
    ) -> Mount:  # fmt: skip
        """Mount a ready file system object on a path of the view, which must exist."""
        _act_as_supervisor()
        fs.init()
        try:
            return self.add_mount(fs, fstype, source, target, options, module, space)
        except BaseException:
            fs.destroy()
            raise

    def add_mount(
        self, fs: FileSystem, fstype: str, source: str, target: bytes,
        options: dict[str, str], module: str, space: Space | None, bind: bytes | None = None,
        missing: bool = False,
    ) -> Mount:  # fmt: skip
        with self._lock:
            directory = stat.S_ISDIR(fs.getattr(b"/").mode)
            point, found = self._mount_point(target, space, missing, fs.needs_point)
            if not missing and found is not None and found != directory:
                number = errno.EISDIR if found and bind is None else errno.ENOTDIR
                raise OSError(number, os.strerror(number), os.fsdecode(target))
            ident = self.mount_table.next_id()
            mount = Mount(ident, point, fs, fstype, source, dict(options), module)
            mount.read_only = "ro" in options
            mount.bind, mount.glue = bind, missing
            (space or self.spaces.first).table.add(mount)
            self._commit_mounts()
        log.info("%s mounted on %s", fstype, os.fsdecode(point))
        return mount

    def _mount_point(
        self, target: bytes, space: Space | None, missing: bool, needed: bool
    ) -> tuple[bytes, bool | None]:
        """The canonical path, and whether it is a directory; None: it is missing."""
        try:
            where = self.walk(target, space, missing)
        except FileNotFoundError as error:
            if needed:
                raise OSError(error.errno, error.strerror, os.fsdecode(target)) from None
            return (space or self.spaces.first).outer(os.path.normpath(target)), None
        except OSError as error:
            raise OSError(error.errno, error.strerror, os.fsdecode(target)) from None
        if where.missing:
            return where.path, False
        if where.mount is not None:
            mode = (where.attr or where.mount.fs.getattr(where.inside)).mode
        else:
            mode = os.stat(where.host).st_mode
        return where.path, stat.S_ISDIR(mode)

    def walk(self, path: bytes, space: Space | None = None, missing: bool = False) -> Any:
        """Where an absolute path leads in the view, or in that of a space."""
        pid, space = os.getpid(), space or self.spaces.first
        flags = FOLLOW | MISSING_OK if missing else FOLLOW
        return space.table.walk(
            pid, pid, b"/", path, flags, self, -1, None, space, self.spaces
        )  # fmt: skip

    def umount(
        self, target: bytes, force: bool = False, lazy: bool = False, space: Space | None = None
    ) -> None:
        """Remove the topmost mount on `target`. NotFound: none; Busy: in use, and not forced."""
        self.files.drain()
        space = space or self.spaces.first
        with self._lock:
            try:
                where = self.walk(target, space)
                point = where.path
            except OSError:
                # a broken file system must still come off
                point = space.outer(os.path.normpath(target))
            mount = space.table.at(point)
            if mount is None:
                raise NotFound(f"{os.fsdecode(target)}: not mounted")
            self.remove(mount, force, lazy, space.table)

    def remove(
        self, mount: Mount, force: bool = False, lazy: bool = False, table: MountTable | None = None
    ) -> None:
        """Take a mount out of a view (None: out of all). Busy: files are open, it is a working
        directory, or it has mounts."""
        point = os.fsdecode(mount.point)
        with self._lock:
            tables = [table] if table else [t for t in self.spaces.tables() if mount in t.all]
            last = not any(mount in t.all for t in self.spaces.tables() if t not in tables)
            if not force and not lazy:
                if any(t.carries(mount) for t in tables):
                    raise Busy(f"{point}: other mounts are on it")
                if mount.uses and last:
                    raise Busy(f"{point}: {mount.uses} open file{'s' * (mount.uses > 1)}")
                if last and (why := mount.fs.in_use()):
                    raise Busy(f"{point}: {why}")
                using = bound.users(self, mount, tables)
                if using:
                    raise Busy(f"{point}: process {using[0]} uses it")
            for one in tables:
                one.remove(mount)
            mount.detached = last
            self._commit_mounts()
        if not last:
            return
        self.files.sync_mount(mount)
        if force and not lazy:
            self.files.kill_mount(mount)
        if not mount.uses:
            self._destroy(mount)
        log.info("%s unmounted from %s", mount.fstype, point)

    def released(self, mount: Mount) -> None:
        """An open file of a mount is gone for good (called by `files`)."""
        if mount.detached and not mount.uses:
            self._destroy(mount)

    def _destroy(self, mount: Mount) -> None:
        with self._lock:
            if mount.destroyed:
                return
            mount.destroyed = True
        self.files.forget_mount(mount)
        self.specials.forget_mount(mount)
        self.images.forget(mount)
        try:
            mount.fs.destroy()
        except Exception:
            log.exception("unmounting %s", os.fsdecode(mount.point))

    def _commit_mounts(self) -> None:
        self.spaces.commit()
        self.engine.forget_paths()
        self.state_changed()

    def remounted(self) -> None:
        """A bind mount became read-only, or writable again."""
        with self._lock:
            for table in self.spaces.tables():
                table.recompile()
            self._commit_mounts()

    def mounts(self, space: Space | None = None) -> list[dict[str, Any]]:
        """Describe the mounts in mount order, for `umvm mounts`, as they are seen in a space."""
        return describe.mounts(space or self.spaces.first)

    def mounts_of(self, module: str) -> int:
        """The number of mounts, and of sockets, that a module serves."""
        mounts = {mount for table in self.spaces.tables() for mount in table.all}
        count = sum(1 for mount in mounts if mount.module == module)
        return count + (self.stacks.open_sockets() if self.stacks and module == "net" else 0)

    def mounted_below(self, path: bytes, own: Mount | None = None) -> bool:
        """Is a mount on this path or below it (other than `own`)?"""
        return any(table.mounted_below(path, own) for table in self.spaces.tables())

    def sync_mappings(self) -> None:
        """Write back what guests stored through shared mappings."""
        self.files.sync()

    # --- end -------------------------------------------------------------------------------------

    def shutdown(self) -> None:
        """End all guests: each is killed now, or with the next call it makes."""
        self.closing = True
        self.sockets.set_calls(())
        self.engine.set_hooks(table.trapped_numbers())
        self._kill_all()

    def _kill_all(self) -> None:
        self.init.kill()
        for pid in self.guest_pids():
            kill(pid, signal.SIGKILL)

    def close(self) -> None:
        """End the guests, unmount everything, stop the modules, remove the shadow directory."""
        self.shutdown()
        until = time.monotonic() + SHUTDOWN_WAIT
        while self._listeners and not self.ended.wait(0.02) and time.monotonic() < until:
            self._kill_all()
        if not isinstance(self.engine, Engine):
            self.engine.close()
        self.events.close()
        self.files.drain()
        every = dict.fromkeys(mount for table in self.spaces.tables() for mount in table.all)
        for mount in reversed(every):
            try:
                self.remove(mount, force=True)
            except Exception:
                log.exception("unmounting %s", os.fsdecode(mount.point))
        self.manager.close()
        self.files.close()
        self.proc.scores.close()
        self.shadow.close()
        if self._owners is not None:
            self._owners.close()


def _act_as_supervisor() -> None:
    set_caller(Caller(os.geteuid(), os.getegid(), os.getpid(), tuple(os.getgroups())))
