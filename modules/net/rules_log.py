"""What rules have denied: the last ones in memory, all of them in a file if there is one."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import deque
from typing import Any

from .rules import Where

log = logging.getLogger(__name__)

KEPT = 1000


class Denials:
    """A log of what was denied, one JSON object a line in the file."""

    def __init__(self, path: str = "") -> None:
        """`path`: a file to append to. OSError."""
        self._last: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._lock = threading.Lock()
        self._fd = -1
        if path:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._fd = os.open(path, flags, 0o666)

    def add(self, tid: int, where: Where, names: list[str], why: str) -> None:
        """Something was denied."""
        entry = {
            "time": round(time.time(), 3),
            "pid": tid,
            "program": _program(tid),
            "direction": where.direction,
            "protocol": where.protocol,
            "address": str(where.address),
            "port": where.port,
            "names": sorted(names),
            "why": why,
        }
        with self._lock:
            self._last.append(entry)
            if self._fd >= 0:
                try:
                    os.write(self._fd, json.dumps(entry).encode() + b"\n")
                except OSError as error:
                    log.warning("the network log: %s", error.strerror)
                    os.close(self._fd)
                    self._fd = -1

    def last(self) -> list[dict[str, Any]]:
        """The last ones, the oldest first."""
        with self._lock:
            return list(self._last)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1


def _program(tid: int) -> str:
    try:
        with open(f"/proc/{tid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""
