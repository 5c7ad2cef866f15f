"""execve and execveat: served programs, scripts, and host scripts whose interpreter is served."""

from __future__ import annotations

import errno
import os
import re
import stat
import struct
from typing import TYPE_CHECKING, Any

from core_accel.engine import Engine
from core_accel.lazy import pattern
from umvm.guest.interpreter import interpreter_of
from umvm.guest.mounts import Mount, Where
from umvm.guest.openfile import OpenFile
from umvm.interfaces.filesystem import Attr
from umvm.syscalls.context import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_SYMLINK_NOFOLLOW,
    Opened,
    Reply,
    Request,
    attributes,
    enter,
    fail,
    file_of,
    full_path,
    handles,
    host_path,
    locate,
    look,
    nameless,
    signed,
)  # fmt: skip
from umvm.vfs.permission import permit

if TYPE_CHECKING:
    from umvm.vm import VirtualMachine

HEAD = 256
"""Bytes of a program that the kernel looks at (BINPRM_BUF_SIZE)."""
MAX_DEPTH = 5
"""Interpreters that may follow each other (fs/exec.c); then ELOOP."""
MAX_ARGUMENTS = 0x7FFFFFFF // 8
NATIVELY = 0x756D766D6E617469
"""UMVM_NATIVELY of core_accel/agent/layout.h."""
_PIECE = 512
_BLANK = b" \t"
_BLANKS = (b" ", b"\t")
_END = pattern(rb"[ \t\0]")


class Shebang(Exception):
    """The file is a script for `interpreter`."""

    def __init__(self, interpreter: bytes, argument: bytes | None) -> None:
        super().__init__(interpreter)
        self.interpreter, self.argument = interpreter, argument


@handles("execve", "execveat")
def sys_execve(vm: VirtualMachine, req: Request) -> Reply | None:
    """execve(2), execveat(2)."""
    a = req.args
    at = 1 if req.nr == 322 else 0
    flags = a[4] if at else 0
    if flags & ~(AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW):
        return None
    dirfd = signed(a[0]) if at else AT_FDCWD
    path = req.string(a[at])
    if not at and a[3] == NATIVELY and has_agent(vm):
        return _natively(vm, req, path)
    name = path
    if not path and flags & AT_EMPTY_PATH:
        file = vm.files.of(req.tid, dirfd)
        name = b"/dev/fd/%d" % dirfd
        if file is None:
            return _execute_fd(vm, req, dirfd)
        attr = attributes(file)
        inside = file.path
        where = Where(file.mount, full_path(file), inside, False, False, 0, True, attr, file)
        enter(vm, req)
    else:
        where = locate(vm, req, dirfd, path, not flags & AT_SYMLINK_NOFOLLOW)
        if flags & AT_SYMLINK_NOFOLLOW and where.mount is None and os.path.islink(where.host):
            raise fail(errno.ELOOP)
        if at and not path.startswith(b"/") and dirfd != AT_FDCWD:
            name = b"/dev/fd/%d/%s" % (dirfd, path)
    first, executed = where, name
    front: list[bytes] = []
    for _ in range(MAX_DEPTH + 1):
        try:
            if where.mount is None and has_agent(vm):
                _check_script(vm, req, where)
                loader = _loader(vm, req, where.host, executed, front)
                if loader is not None:
                    return req.rewrite({6: 59, 0: loader, 1: a[at + 1], 2: a[at + 2]})
            program = _program(vm, req, where)
            break
        except Shebang as script:
            if executed is not path and _closed_on_exec(req.tid, dirfd):
                raise fail(errno.ENOENT) from None  # the interpreter couldn't open it
            given = [] if script.argument is None else [script.argument]
            front = [script.interpreter, *given, name, *front[1:]]
            name = script.interpreter
            where = locate(vm, req, AT_FDCWD, name)
    else:
        raise fail(errno.ELOOP)
    if program is None and where is first and not where.changed:
        return None
    start = program or host_path(where)
    if path:
        start = vm.images.called(start, os.path.basename(path))
    changes: dict[int, int | bytes | tuple[bytes, list[int]]] = {at: start}
    if flags & AT_SYMLINK_NOFOLLOW:
        changes[4] = 0
    if front:
        changes[at + 1] = _arguments(req, a[at + 1], front)
    return req.rewrite(changes)


def _loader(
    vm: VirtualMachine, req: Request, program: bytes, name: bytes, front: list[bytes]
) -> bytes | None:
    """What to execute to load a program with the agent; None: it is better executed as it is.
    **Errors** ENOENT, EACCES: of its interpreter."""
    if not vm.spaces.of(req.tid).plain and may_execute(program):
        wanted = interpreter_of(program)
        if wanted is not None:
            _interpreter(vm, req, wanted)
    engine: Any = vm.engine  # which has an agent
    loader: bytes | None = engine.load(req, program, name, front)
    return loader


def _natively(vm: VirtualMachine, req: Request, path: bytes) -> Reply | None:
    """What the loader can't load is executed without it; `path` is the host's."""
    where = Where(None, path, path, False, False, 0, True, host=path)
    program = _host_program(vm, req, where)
    return None if program is None else req.rewrite({0: program})


def _execute_fd(vm: VirtualMachine, req: Request, fd: int) -> Reply | None:
    """fexecve(3) of a host's program: the kernel's, unless the view has another interpreter."""
    if vm.spaces.of(req.tid).plain:
        return None
    link = b"/proc/%d/fd/%d" % (req.tid, fd)
    where = Where(None, link, link, False, False, 0, False, host=link)
    try:
        program = _host_program(vm, req, where)
    except Shebang:
        if vm.spaces.of(req.tid).root == b"/":
            return None
        raise fail(errno.ENOENT) from None  # the kernel would take the host's interpreter
    if program is None:
        return None
    return req.rewrite({6: 59, 0: program, 1: req.args[2], 2: req.args[3]})


def may_execute(path: bytes) -> bool:
    """Does the kernel execute this host file, as far as modes and mount options go?"""
    try:
        noexec = os.statvfs(path).f_flag & os.ST_NOEXEC
    except OSError:
        return False
    return not noexec and os.access(path, os.X_OK, effective_ids=True)


def has_agent(vm: VirtualMachine) -> bool:
    """Do guests execute programs through the agent's loader?"""
    return not isinstance(vm.engine, Engine)


def _program(vm: VirtualMachine, req: Request, where: Where) -> bytes | None:
    """What the kernel is to execute for a file: None for a host file as it is, or a copy's path."""
    if where.mount is None:
        return _host_program(vm, req, where)
    mount, inside = where.mount, where.inside
    caller = enter(vm, req)
    attr = look(where)
    if where.slash and not stat.S_ISDIR(attr.mode):
        raise fail(errno.ENOTDIR)
    if not stat.S_ISREG(attr.mode):
        raise fail(errno.ELOOP if stat.S_ISLNK(attr.mode) else errno.EACCES)
    if "noexec" in mount.options or not attr.mode & 0o111:
        raise fail(errno.EACCES)
    permit(mount, attr, caller, 1)
    if not mount.permissions():
        mount.fs.access(inside, 1)
    if _written(vm, mount, inside):
        vm.files.drain()  # a last close may not have been noticed yet
        if _written(vm, mount, inside):
            raise fail(errno.ETXTBSY)
    head = _served_head(where)
    if head.startswith(b"#!"):
        script = parse_shebang(head)
        if script is None:
            raise fail(errno.ENOEXEC)
        raise script
    if not head.startswith(b"\x7fELF"):
        raise fail(errno.ENOEXEC)
    known = file_of(where)
    fh = _handle(known) if known is not None and nameless(known) else None
    node = vm.files.node_at(mount, inside, attr)
    if node is not None:
        node.write_back()  # a linker may have written it through a mapping
        attr = mount.fs.getattr(inside, fh)
    return vm.images.get(mount, inside, attr, lambda path: _interpreter(vm, req, path), fh)


def _check_script(vm: VirtualMachine, req: Request, where: Where) -> bytes:
    """How a file of the host begins. Shebang: it is a script, and its interpreter is to be executed
    instead. **Errors** ENOEXEC."""
    head = _host_head(where.host)
    if head.startswith(b"#!"):
        script = parse_shebang(head)
        if script is None:
            return head
        runs = may_execute(where.host)
        inner = _try_locate(vm, req, script.interpreter)
        if inner is None:
            if runs and vm.spaces.of(req.tid).root != b"/":
                locate(vm, req, AT_FDCWD, script.interpreter)  # fails; the host may have it
        elif inner.mount is not None or (
            runs and (where.changed or inner.changed or has_agent(vm))
        ):
            raise script
    if head.startswith(b"\x7fELF\x01"):
        raise fail(errno.ENOEXEC)  # 32-bit: its calls would be refused, exit among them
    return head


def _host_program(vm: VirtualMachine, req: Request, where: Where) -> bytes | None:
    """As `_program`, for a file of the host."""
    head = _check_script(vm, req, where)
    if not head.startswith(b"\x7fELF"):
        return None
    space = vm.spaces.of(req.tid)
    if space.plain and not space.table.all:
        return None
    name = interpreter_of(where.host)
    if name is None or not may_execute(where.host):
        return None
    found = _interpreter(vm, req, name)
    if found is None or _same_file(found, name):
        return None
    st = os.stat(where.host)
    attr = Attr(
        st.st_mode, ino=st.st_ino, size=st.st_size, mtime_ns=st.st_mtime_ns, ctime_ns=st.st_ctime_ns
    )
    return vm.images.get(None, where.host, attr, lambda path: found)


def _same_file(a: bytes, b: bytes) -> bool:
    try:
        return os.path.samefile(a, b)
    except OSError:
        return False


def _interpreter(vm: VirtualMachine, req: Request, path: bytes) -> bytes | None:
    """The copy of an ELF interpreter that lies in a mount; None: the host's is right."""
    where = locate(vm, req, AT_FDCWD, path)
    if where.mount is None:
        return where.host if where.changed else None
    attr = look(where)
    permit(where.mount, attr, enter(vm, req), 1)
    return vm.images.get(where.mount, where.inside, attr, lambda path: None)


def _written(vm: VirtualMachine, mount: Mount, inside: bytes) -> bool:
    return any(file.writable for file in vm.files.on_path(mount, inside))


def parse_shebang(head: bytes) -> Shebang | None:
    """Take the first line of a script apart (fs/binfmt_script.c); None: ENOEXEC."""
    text = head[:HEAD].ljust(HEAD, b"\0")
    end = text.find(b"\n")
    if end < 0:
        end = HEAD - 1
        if not _END.search(text[2:].lstrip(_BLANK)):
            return None  # the name may have been cut off
    line = text[2:end].strip(_BLANK)
    if not line:
        return None
    name = _END.split(line, 1)[0]
    rest = line[len(name) :]
    return Shebang(name, rest.lstrip(_BLANK).split(b"\0")[0] if rest[:1] in _BLANKS else None)


def _try_locate(vm: VirtualMachine, req: Request, path: bytes) -> Where | None:
    try:
        return locate(vm, req, AT_FDCWD, path)
    except OSError:
        return None


def _host_head(path: bytes) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return b""  # the kernel says what is wrong with it
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return b""
        return os.read(fd, HEAD)
    finally:
        os.close(fd)


def _served_head(where: Where) -> bytes:
    assert where.mount is not None
    fs, inside = where.mount.fs, where.inside
    known = file_of(where)
    if known is not None and nameless(known):
        return bytes(fs.read(inside, _handle(known), HEAD, 0))
    fh = fs.open(inside, os.O_RDONLY)
    try:
        return bytes(fs.read(inside, fh, HEAD, 0))
    finally:
        fs.release(inside, fh)


def _handle(file: Opened) -> object:
    """The handle that a file without a name is read by. **Errors** ENOENT: it can't be."""
    if not isinstance(file, OpenFile) or file.is_path:
        raise fail(errno.ENOENT)
    return file.fh


def _closed_on_exec(tid: int, fd: int) -> bool:
    with open(f"/proc/{tid}/fdinfo/{fd}", "rb") as file:
        flags = re.search(rb"(?m)^flags:\s*([0-7]+)", file.read())
    return flags is not None and bool(int(flags[1], 8) & os.O_CLOEXEC)


def _arguments(req: Request, addr: int, front: list[bytes]) -> tuple[bytes, list[int]]:
    """A new argv array: `front`, then the guest's arguments without the first."""
    pointers = _pointers(req, addr)[1:]
    count = len(front) + len(pointers) + 1
    words, text, offsets = [], bytearray(), []
    for index, word in enumerate(front):
        offsets.append(8 * index)
        words.append(8 * count + len(text))
        text += word + b"\0"
    return struct.pack(f"<{count}Q", *words, *pointers, 0) + bytes(text), offsets


def _pointers(req: Request, addr: int) -> list[int]:
    """The pointers of a NULL-terminated array. OSError(EFAULT)."""
    found: list[int] = []
    while addr:
        size = _PIECE - addr % 8 if addr % 4096 <= 4096 - _PIECE else 4096 - addr % 4096
        piece = req.peek(addr, size - size % 8 or 8)
        if len(piece) < 8:
            raise fail(errno.EFAULT)
        words = struct.unpack(f"<{len(piece) // 8}Q", piece[: len(piece) // 8 * 8])
        if 0 in words:
            return found + list(words[: words.index(0)])
        found += words
        addr += 8 * len(words)
        if len(found) > MAX_ARGUMENTS:
            raise fail(errno.E2BIG)
    return found
