"""Facts about guest processes that their children inherit: changed ids, the network stack in use.

They are kept where fork(2) and execve(2) pass them on: in the process itself. The kernel gives each
process limits of its own, which children copy, and one of them, RLIMIT_LOCKS, has had no effect
since Linux 2.4 (getrlimit(2)). Its soft limit holds the number of a record; a process without mark
has what it had before, as a rule RLIM_INFINITY. So nothing has to be learnt of forks, and a process
that ended can't be mistaken for another one. What guests do with this limit is answered in
umvm/syscalls/limits.py.
"""

from __future__ import annotations

import errno
import os
import resource
import threading
from collections.abc import Callable, Hashable
from typing import Any

from umvm.guest.rlimits import RLIMIT_LOCKS, soft_limit

MARKED = 0x756D766D << 32
"""A soft limit of this and less than `MAX_RECORDS` more is a mark."""
MAX_RECORDS = 1 << 16

Record = dict[Hashable, Any]


class Marks:
    """The records of one VM, by number. Records never change; equal ones are one."""

    def __init__(self) -> None:
        self._records: list[Record] = [{}]
        self._numbers: dict[frozenset[tuple[Hashable, Any]], int] = {frozenset(): 0}
        self._lock = threading.Lock()
        self._told: list[Callable[[int, Record], None]] = []
        self.changed: Callable[[int], object] = bool
        """Told of a process that has another record now, before it goes on."""

    def tell(self, told: Callable[[int, Record], None]) -> None:
        """Have `told(number, record)` called for each record, those to come included."""
        with self._lock:
            if told not in self._told:
                self._told.append(told)
            for number, record in enumerate(self._records):
                told(number, record)

    @property
    def used(self) -> bool:
        """Was any process ever marked? If not, there is no need to look."""
        return len(self._records) > 1

    def get(self, pid: int, key: Hashable) -> Any:
        """What a process, or the process of a thread, has under a key; None: nothing."""
        return self.of_process(pid).get(key) if len(self._records) > 1 else None

    def of_process(self, pid: int) -> Record:
        """All that is noted of a process. **Errors** ESRCH: it is gone."""
        number = soft_limit(pid, RLIMIT_LOCKS) - MARKED
        return self._records[number] if 0 <= number < len(self._records) else {}

    def set(self, pid: int, key: Hashable, value: Any) -> None:
        """Mark a process with a hashable value; None removes it.

        **Errors** EAGAIN: too many different records. ESRCH: it is gone. EPERM: it has become
        another user on the host, and this one hasn't got CAP_SYS_RESOURCE. EINVAL: the guest's
        hard limit leaves no room.
        """
        with self._lock:
            record = {**self.of_process(pid), key: value}
            if value is None:
                del record[key]
            if record == self.of_process(pid):
                return
            number = self._number(record)
            hard = resource.prlimit(pid, RLIMIT_LOCKS)[1]
            try:
                resource.prlimit(pid, RLIMIT_LOCKS, (MARKED + number, hard))
            except ValueError:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL)) from None
            self.changed(pid)

    def record(self, number: int) -> Record:
        """The record with a number."""
        return self._records[number]

    def _number(self, record: Record) -> int:
        items = frozenset(record.items())
        number = self._numbers.get(items)
        if number is None:
            number = len(self._records)
            if number >= MAX_RECORDS:
                raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            for told in self._told:
                told(number, record)  # before any process can have it
            self._records.append(record)
            self._numbers[items] = number
        return number
