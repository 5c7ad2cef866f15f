"""Threads on which file systems are told of last closes, so that a slow one holds nobody up."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from core_accel.lazy import logger

if TYPE_CHECKING:
    from umvm.guest.mounts import Mount

log = logger(__name__)
Job = Callable[[], None]
THREADS = 4
"""For each mount at most; they end when there is nothing to do."""
ENOUGH = 16
"""Jobs that may wait for each thread before there is another one: quick ones need just one."""


class Releases:
    """Runs jobs of each mount in order of arrival, those of several mounts side by side."""

    def __init__(self, finished: Callable[[Mount], None]) -> None:
        """`finished(mount)` is called whenever the last job of a mount is done."""
        self._finished = finished
        self._changed = threading.Condition()
        self._jobs: dict[Mount, deque[Job]] = {}
        self._busy: dict[Mount, int] = {}

    def submit(self, mount: Mount, job: Job) -> None:
        """Run `job` soon, on another thread."""
        with self._changed:
            jobs = self._jobs.setdefault(mount, deque())
            jobs.append(job)
            busy = self._busy.get(mount, 0)
            if busy < THREADS and len(jobs) > ENOUGH * busy:
                self._busy[mount] = busy + 1
                threading.Thread(
                    target=self._work, args=(mount,), daemon=True, name="umvm-release"
                ).start()

    def _work(self, mount: Mount) -> None:
        while True:
            with self._changed:
                jobs = self._jobs.get(mount)
                if not jobs:
                    self._busy[mount] -= 1
                    last = self._busy[mount] == 0
                    if last:
                        del self._busy[mount]
                        self._jobs.pop(mount, None)
                    self._changed.notify_all()
                    break
                job = jobs.popleft()
            try:
                job()
            except Exception:
                log.exception("releasing a file of %r", mount.point)
        if last:
            try:
                self._finished(mount)
            except Exception:
                log.exception("after the last release of %r", mount.point)

    def settle(self, mount: Mount | None, timeout: float) -> bool:
        """Wait until the jobs of a mount (None: of all) are done; False: not within `timeout` s."""
        until = time.monotonic() + timeout
        with self._changed:
            while self._busy if mount is None else mount in self._busy:
                left = until - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(left)
        return True
