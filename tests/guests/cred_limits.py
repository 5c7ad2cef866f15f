"""Limits and priorities that root raises, and others can't; for root, real or virtual."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import subprocess

LIBC = ctypes.CDLL(None, use_errno=True)
IOPRIO_SET, IOPRIO_GET, PROCESS = 251, 252, 1
REALTIME, BEST_EFFORT = 1 << 13 | 3, 2 << 13 | 7
CORE, LOCKS = resource.RLIMIT_CORE, 10


def attempt(function: object, *arguments: object) -> object:
    try:
        return function(*arguments)  # type: ignore[operator]
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    except ValueError:
        return "refused"


def call(number: int, *arguments: int) -> object:
    result: int = LIBC.syscall(number, *arguments)
    return result if result >= 0 else errno.errorcode[ctypes.get_errno()]


def nice() -> object:
    return attempt(os.getpriority, os.PRIO_PROCESS, 0)


def main() -> None:
    print("nice", attempt(os.setpriority, os.PRIO_PROCESS, 0, 5), nice(), attempt(os.nice, -8))
    print("child", subprocess.check_output(["nice"], text=True).strip())
    for wanted in ((5, 6), (9, 8), (4, 4)):
        print("core", attempt(resource.setrlimit, CORE, wanted), resource.getrlimit(CORE))
    print("locks", resource.getrlimit(LOCKS), attempt(resource.setrlimit, LOCKS, (3, 4)))
    print("both", attempt(resource.prlimit, 0, CORE, (1, 2)), resource.getrlimit(CORE))
    print("child", subprocess.check_output(["sh", "-c", "ulimit -Hc; ulimit -Sc"], text=True))
    lines = open("/proc/self/limits").read().splitlines()
    print(lines[1 + CORE], lines[1 + LOCKS], sep="\n")
    print("io", call(IOPRIO_SET, PROCESS, 0, REALTIME), call(IOPRIO_GET, PROCESS, 0))
    print("io", call(IOPRIO_SET, PROCESS, 0, BEST_EFFORT), call(IOPRIO_GET, PROCESS, 0))
    pid = os.fork()
    if pid == 0:
        os.execvp("sleep", ["sleep", "1"])
    os.setresuid(33, 33, 33)
    print("raised", attempt(resource.setrlimit, CORE, (1, 100)), resource.getrlimit(CORE))
    print("lowered", attempt(resource.setrlimit, CORE, (0, 1)), resource.getrlimit(CORE))
    print("nicer", attempt(os.nice, -1), attempt(os.nice, 1))
    print("io", call(IOPRIO_SET, PROCESS, 0, REALTIME), call(IOPRIO_GET, PROCESS, 0))
    print("root's", attempt(os.setpriority, os.PRIO_PROCESS, pid, 19), attempt(os.kill, pid, 0))
    print("root's", attempt(resource.prlimit, pid, CORE), attempt(os.kill, pid, 9))
    print("its end", os.waitpid(pid, 0)[1])


main()
