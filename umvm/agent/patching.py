"""Has files analysed that guests map, away from the calls, and tells the agents of the results.

The process that does it holds nothing of the caller's (terminal, pipes), as it may outlive the VM.
"""

from __future__ import annotations

import json
import os
import re
import socket
import stat
import sys
import threading
from pathlib import Path

import umvm
from core_accel.agentarea import Area
from core_accel.lazy import logger, pattern
from core_accel.request import Reply, Request
from umvm.agent.cache import Cache, Entry, Key

log = logger(__name__)

PROT_EXEC, PROT_WRITE, MAP_ANONYMOUS = 4, 2, 0x20
_NAMED = pattern(rb"(?m)^\S+ \S+ \S+ (\S+) (\d+) +(/.*)$")
"""A mapped file in proc_pid_maps(5): device, inode, name."""


class Patcher:
    """The text cache of one VM. Methods may be called from any thread."""

    def __init__(self, area: Area, directory: Path) -> None:
        """**Errors** OSError: the directory can't be used."""
        self._area = area
        self._cache = Cache(directory)
        self._known: set[Key] = set()
        self._files: socket.socket | None = None
        self._lock = threading.Lock()
        self._copies: dict[bytes, Entry] = {}
        prefix = re.escape(os.fsencode(directory))
        self._line = pattern(
            rb"^(\S+ \S+) ([0-9a-f]+) \S+ \d+ +" + prefix + rb"/([0-9a-f]{32})$", re.MULTILINE
        )
        for entry in self._cache.entries():
            self._tell(entry)

    def see(self, req: Request) -> Reply | None:
        """A guest maps a file executable and its agent doesn't know it, or there is none."""
        args = req.args
        if not args[2] & PROT_EXEC or args[2] & PROT_WRITE or args[3] & MAP_ANONYMOUS:
            return None
        try:
            fd = req.getfd(args[4] & 0xFFFFFFFF)
        except (OSError, OverflowError):
            return None
        st = os.fstat(fd)
        key = Key.of(st, 0)
        if not stat.S_ISREG(st.st_mode) or not self._first(key):
            os.close(fd)
            return None
        try:
            path = os.readlink(b"/proc/self/fd/%d" % fd)
            socket.send_fds(self._analyser(), [path], [fd], socket.MSG_DONTWAIT)
        except OSError:
            self._known.discard(key)  # too many at once: it is seen again when it is mapped again
        finally:
            os.close(fd)
        return None

    def unpatched(self, maps: bytes) -> bytes:
        """A text of /proc/PID/maps or smaps with the original files in place of the copies."""
        names = {(line[1], int(line[2])): line[3] for line in _NAMED.finditer(maps)}

        def original(found: re.Match[bytes]) -> bytes:
            return self._original(found, names)

        return self._line.sub(original, maps)

    def _original(self, found: re.Match[bytes], names: dict[tuple[bytes, int], bytes]) -> bytes:
        """`names`: what the other mappings of files are called; a file may have several names."""
        entry = self._copies.get(found[3])
        if entry is None:
            return found[0]
        device = b"%02x:%02x" % (os.major(entry.key.dev), os.minor(entry.key.dev))
        offset = int(found[2], 16) + entry.key.offset
        line = b"%s %08x %s %d" % (found[1], offset, device, entry.key.ino)
        name = names.get((device, entry.key.ino), os.fsencode(entry.path))
        return line.ljust(72) + b" " + name

    def close(self) -> None:
        """Stop listening. What was seen is analysed nevertheless, for later VMs."""
        with self._lock:
            if self._files is not None:
                self._files.shutdown(socket.SHUT_WR)

    def _first(self, key: Key) -> bool:
        with self._lock:
            new = key not in self._known
            self._known.add(key)
            return new

    def _analyser(self) -> socket.socket:
        """Where to send files; a thread starts the process, so that no guest waits for it."""
        with self._lock:
            if self._files is None:
                self._files, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                work = threading.Thread(target=self._work, args=(self._files, theirs), daemon=True)
                work.start()
            return self._files

    def _tell(self, entry: Entry) -> None:
        self._known.add(entry.key._replace(offset=0))
        self._copies[entry.name.encode()] = entry
        stubs = self._cache.stubs(entry)
        if stubs is None:
            return
        self._area.add_text(
            entry.key, entry.length, entry.vaddr, entry.stub, stubs,
            entry.copy_size, entry.name.encode(), entry.id_offset, bytes.fromhex(entry.build_id),
        )  # fmt: skip

    def _work(self, files: socket.socket, theirs: socket.socket) -> None:
        """Start the process and hear what it found, until it has done all or the VM ends."""
        # this umvm, and not what is called so in the directory where the user happens to be
        command = [
            sys.executable,
            "-P",
            "-m",
            "umvm.agent.analyse",
            os.fspath(self._cache.directory),
        ]
        path = [str(Path(umvm.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
        import subprocess  # it takes its time, and mostly there is nothing to analyse

        with theirs:
            process = subprocess.Popen(
                command, stdin=theirs.fileno(), stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL, start_new_session=True, env=env,
            )  # fmt: skip
        while answer := files.recv(1 << 16):
            for one in json.loads(answer):
                entry = Entry(Key(*one[0]), *one[1:])
                log.info("%s: %d calls patched", entry.path, entry.sites)
                self._tell(entry)
        process.wait()
