"""`umvm doctor`: what this host offers, and what a missing thing costs.

What can be tried is tried, with a child process as the guest, rather than read off a version.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

SECCOMP_SET_MODE_FILTER, NEW_LISTENER, WAIT_KILLABLE_RECV = 1, 1 << 3, 1 << 5
PR_SET_NO_NEW_PRIVS, PTRACE_SEIZE = 38, 0x4206
CLONE_NEWUSER = 0x10000000
RET_ALLOW = b"\x06\0\0\0\0\0\xff\x7f"  # one BPF instruction: every call is allowed

_NR = {"seccomp": 317, "pidfd_getfd": 438, "process_vm_readv": 310}  # x86-64
_OLDEST = (5, 19)  # SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
_SYNC_WAKE_UP_SINCE = (6, 6)  # SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP
_FEW_FILES = 4096

OK, SLOW, MISSING, INFO = "ok", "slow", "missing", "info"


class Check(NamedTuple):
    """One line of the report; `state`: ok; slow: works, at a price; missing; info: not needed."""

    name: str
    state: str
    reason: str


def examine() -> list[Check]:
    """Try each thing, in an order that a reader can follow."""
    report = []
    for name, check in CHECKS:
        try:
            state, reason = check()
        except OSError as error:
            state, reason = MISSING, error.strerror or str(error)
        report.append(Check(name, state, reason))
    return report


# --- tools ------------------------------------------------------------------------------------


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _syscall(name: str, *args: Any) -> int:
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in args]
    return _checked(_libc.syscall(ctypes.c_long(_NR[name]), *words))


def _in_child(task: Callable[[], object]) -> None:
    """Run a task in a child process; its OSError is raised here."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            task()
            status = 0
        except OSError as error:
            status = error.errno or 1
        finally:
            os._exit(status)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise OSError(code, os.strerror(code) if code > 0 else f"killed by signal {-code}")


def _with_child(task: Callable[[int], object]) -> None:
    """Run a task on the pid of a child that waits to be killed."""
    pid = os.fork()
    if pid == 0:
        while True:
            signal.pause()
    try:
        task(pid)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _release() -> tuple[int, int]:
    numbers = [part for part in platform.release().replace("-", ".").split(".") if part.isdigit()]
    return int(numbers[0]), int(numbers[1])


# --- checks -----------------------------------------------------------------------------------


def _kernel() -> tuple[str, str]:
    release = f"Linux {platform.release()}"
    if _release() >= _OLDEST:
        return OK, release
    return MISSING, f"{release}; {_OLDEST[0]}.{_OLDEST[1]} or later is needed"


def _architecture() -> tuple[str, str]:
    machine = platform.machine()
    return (OK, machine) if machine == "x86_64" else (MISSING, f"{machine}; x86_64 is needed")


def _listener() -> tuple[str, str]:
    def install() -> None:
        _checked(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        program = _Program(1, RET_ALLOW)
        flags = NEW_LISTENER | WAIT_KILLABLE_RECV
        _syscall("seccomp", SECCOMP_SET_MODE_FILTER, flags, ctypes.byref(program))

    try:
        _in_child(install)
    except OSError as error:
        hints = {
            16: "a filter with a listener is there already: inside a VM or a container's",
            22: "the kernel doesn't know a flag that is needed",
            38: "the kernel or a container's filter refuses seccomp(2)",
        }
        return MISSING, hints.get(error.errno or 0, error.strerror or str(error))
    return OK, "calls can be passed to a supervisor"


def _sync_wake_up() -> tuple[str, str]:
    if _release() >= _SYNC_WAKE_UP_SINCE:
        return OK, "answers stay on the guest's CPU"
    return SLOW, "Linux 6.6 or later answers a trapped call several times faster"


def _yama() -> tuple[str, str]:
    try:
        scope = int(Path("/proc/sys/kernel/yama/ptrace_scope").read_text())
    except FileNotFoundError:
        return OK, "no yama"
    meaning = {0: "any process of yours", 1: "descendants only, which guests are"}
    return (OK if scope in meaning else SLOW), f"ptrace_scope {scope}: " + meaning.get(
        scope, "not without CAP_SYS_PTRACE; the next three lines tell what is left"
    )


def _memory() -> tuple[str, str]:
    data = ctypes.create_string_buffer(b"umvm")
    copy = ctypes.create_string_buffer(len(data))

    def read(pid: int) -> None:
        here = _Vector(ctypes.addressof(copy), len(data))
        there = _Vector(ctypes.addressof(data), len(data))
        _syscall("process_vm_readv", pid, ctypes.byref(here), 1, ctypes.byref(there), 1, 0)

    _with_child(read)
    return (OK, "can be read and written") if copy.value == b"umvm" else (MISSING, "reads wrongly")


def _ptrace() -> tuple[str, str]:
    def seize(pid: int) -> None:
        null = ctypes.c_void_p(None)
        _checked(_libc.ptrace(PTRACE_SEIZE, pid, null, null))

    _with_child(seize)
    return OK, "arguments of calls can be changed"


def _pidfd_getfd() -> tuple[str, str]:
    with open(os.devnull) as file:  # the child inherits it
        number = file.fileno()

        def take(pid: int) -> None:
            pidfd = os.pidfd_open(pid)
            try:
                os.close(_syscall("pidfd_getfd", pidfd, number, 0))
            finally:
                os.close(pidfd)

        _with_child(take)
    return OK, "can be copied"


def _shadow() -> tuple[str, str]:
    from umvm.guest.shadow import Shadow

    shadow = Shadow("doctor")
    try:
        place = os.fsdecode(os.path.dirname(os.path.dirname(shadow.path)))
        on_tmpfs = _is_tmpfs(place)
    finally:
        shadow.close()
    if on_tmpfs:
        return OK, f"{place}: links, events and mappings work"
    return SLOW, f"{place} is no tmpfs: opening and mapping served files touches a disk"


def _is_tmpfs(path: str) -> bool:
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    lines = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
    kinds = [line.partition(" - ")[2].split()[0] for line in lines if line.split()[2] == wanted]
    return kinds[:1] == ["tmpfs"]


def _control() -> tuple[str, str]:
    from umvm.control.protocol import socket_dir
    from umvm.errors import UmvmError

    try:
        return OK, str(socket_dir())
    except UmvmError as error:
        return MISSING, str(error)


def _files() -> tuple[str, str]:
    import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if limit == resource.RLIM_INFINITY or limit >= _FEW_FILES:
        return OK, f"{limit} descriptors for the supervisor"
    return SLOW, f"{limit} descriptors for the supervisor: as many served files may be mapped"


def _user_namespaces() -> tuple[str, str]:
    try:
        _in_child(lambda: _checked(_libc.unshare(CLONE_NEWUSER)))
    except OSError as error:
        return INFO, f"no ({error.strerror}); not needed"
    return INFO, "yes; not needed"


def _dev_fuse() -> tuple[str, str]:
    there = os.access("/dev/fuse", os.R_OK | os.W_OK)
    return INFO, f"{'yes' if there else 'no'}; not needed"


CHECKS: tuple[tuple[str, Callable[[], tuple[str, str]]], ...] = (
    ("kernel", _kernel),
    ("architecture", _architecture),
    ("seccomp listener", _listener),
    ("synchronous wake-up", _sync_wake_up),
    ("yama", _yama),
    ("guest memory", _memory),
    ("guest registers", _ptrace),
    ("guest descriptors", _pidfd_getfd),
    ("directory for files", _shadow),
    ("control sockets", _control),
    ("open files", _files),
    ("user namespaces", _user_namespaces),
    ("/dev/fuse", _dev_fuse),
)
