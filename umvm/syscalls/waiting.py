"""Calls that may have to wait for another process: they hold no worker, and signals end them."""

from __future__ import annotations

import errno
import select
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from core_accel.lazy import logger
from umvm.syscalls.context import Reply, Request, enter

if TYPE_CHECKING:
    from umvm.vm import VirtualMachine

log = logger(__name__)
ERESTARTSYS = 512
"""Not for user space: the kernel runs the signal handler, then gives EINTR or restarts the call."""
INTERVAL = 30
"""Milliseconds between looks whether the guest got a signal."""


def signalled(tid: int) -> bool:
    """A signal waits for the thread that it has not blocked (proc_pid_status(5)).

    Ignored signals don't show up there.
    """
    fields = {}
    try:
        with open(f"/proc/{tid}/status", "rb") as status:
            for line in status:
                key, _, value = line.partition(b":")
                fields[key] = value
        pending = int(fields[b"SigPnd"], 16) | int(fields[b"ShdPnd"], 16)
        return bool(pending & ~int(fields[b"SigBlk"], 16))
    except (OSError, KeyError):
        return True  # it is gone


def wait(
    vm: VirtualMachine,
    req: Request,
    fd: int,
    events: int,
    attempt: Callable[[], Reply | None],
    interrupted: Callable[[], Reply],
    done: Callable[[], None],
    timeout: float | None = None,
    too_late: int = errno.EAGAIN,
) -> Reply:
    """Answer later: `attempt` whenever `fd` has `events` (poll(2)), until it gives a reply.

    `interrupted` gives the reply when a signal comes; `done` is called at the end in any case. All
    run on a thread of their own. After `timeout` seconds the call fails with `too_late`.
    """

    def work() -> None:
        try:
            enter(vm, req)
            reply = _loop(req, fd, events, attempt, interrupted, timeout, too_late)
        except OSError as error:
            reply = Reply.error(error.errno or errno.EIO)
        except Exception:
            log.exception("handling %r", req)
            reply = Reply.error(errno.EIO)
        finally:
            done()
        if reply is not None:
            req.answer(reply)

    threading.Thread(target=work, daemon=True, name="umvm-wait").start()
    return Reply.later()


def _loop(
    req: Request,
    fd: int,
    events: int,
    attempt: Callable[[], Reply | None],
    interrupted: Callable[[], Reply],
    timeout: float | None,
    too_late: int,
) -> Reply | None:
    poll = select.poll()
    poll.register(fd, events)
    end = None if timeout is None else time.monotonic() + timeout
    while req.alive():
        left = INTERVAL if end is None else min(INTERVAL, 1000 * (end - time.monotonic()))
        if end is not None and left <= 0:
            return Reply.error(too_late)
        if poll.poll(left):
            reply = attempt()
            if reply is not None:
                return reply
            time.sleep(0.001)  # others may have been faster; POLLERR stays
        if signalled(req.tid):
            return interrupted()
    return None
