"""The event of the last close: inotify(7) on directories of the shadow."""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

from core_accel import launch

IN_CLOSE = 0x18  # IN_CLOSE_WRITE | IN_CLOSE_NOWRITE
IN_OPEN = 0x20
IN_Q_OVERFLOW = 0x4000
_HEAD = struct.Struct("iIII")


class Event(NamedTuple):
    """One event: the watch (-1: events were lost), IN_* bits and the name in the directory."""

    watch: int
    mask: int
    name: bytes


class CloseWatch:
    """An inotify instance that tells of the last close of files in directories.

    The event comes when the last reference to an open file description is gone (descriptors of any
    process, messages under way, mappings), also when the name was removed long before.
    """

    def __init__(self) -> None:
        """**Errors** EMFILE: fs.inotify.max_user_instances is reached."""
        self.fd = launch.watch_closes()

    def add(self, directory: bytes, mask: int = IN_CLOSE) -> int:
        """Watch a directory; the number of the watch. **Errors** ENOSPC: too many watches."""
        return launch.watch_directory(self.fd, directory, mask)

    def read(self) -> list[Event]:
        """The events that are there now, without waiting."""
        try:
            data = os.read(self.fd, 1 << 16)
        except BlockingIOError:
            return []
        events, at = [], 0
        while at < len(data):
            watch, mask, _, length = _HEAD.unpack_from(data, at)
            at += _HEAD.size + length
            events.append(Event(watch, mask, data[at - length : at].rstrip(b"\0")))
        return events

    def close(self) -> None:
        """Give the instance back. Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
