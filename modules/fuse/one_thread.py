"""Runs everything that a file system does in one thread of its own: the option `nothreads`.

libfuse then has only one; programs rely on it, for example those with an SQLite connection.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from umvm.interfaces.filesystem import Caller, caller, set_caller


class _Job:
    """A call that another thread waits for."""

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.function, self.args = function, args
        self.who: Caller = caller()
        self.result: Any = None
        self.failure: BaseException | None = None
        self.done = threading.Event()

    def run(self) -> None:
        set_caller(self.who)
        try:
            self.result = self.function(*self.args)
        except BaseException as error:
            self.failure = error
        self.done.set()


class OneThread:
    """Call it with a function and arguments: the thread carries it out for the same caller."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="umvm-nothreads", daemon=True)
        self._thread.start()

    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        job = _Job(function, args)
        self._jobs.put(job)
        job.done.wait()
        if job.failure is not None:
            raise job.failure
        return job.result

    def close(self) -> None:
        """End the thread after what it has to do."""
        self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job.run()
