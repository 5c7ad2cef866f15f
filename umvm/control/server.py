"""The supervisor's end of the control socket."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from core_accel.lazy import logger
from umvm.control import protocol
from umvm.control.client import is_live
from umvm.errors import Exists, UmvmError, exit_code_of, in_a_line

log = logger(__name__)

Dispatch = Callable[[str, dict[str, Any], list[int]], object]
"""`dispatch(verb, args, fds)`: returns what JSON can carry. A descriptor that it keeps it removes
from `fds`; those left are closed."""


class Server:
    """Listens on a control socket and answers each connection in a thread of its own."""

    def __init__(self, path: str | Path, dispatch: Dispatch) -> None:
        self.path = Path(path)
        self._dispatch = dispatch
        self._closed = False
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        with protocol.locked(self.path.parent):
            self._socket, self._inode = _listen(self.path)
        self._thread = threading.Thread(target=self._accept, name="umvm-control", daemon=True)
        self._thread.start()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening, end the connections and remove the socket. Safe to call twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            connections = list(self._connections)
        try:
            if self.path.stat().st_ino == self._inode:
                self.path.unlink()
        except FileNotFoundError:
            pass
        for sock in [self._socket, *connections]:
            try:
                sock.shutdown(socket.SHUT_RD)  # answers under way may still be sent
            except OSError:
                pass  # the peer was faster
        if threading.current_thread() is not self._thread:
            self._thread.join(5)
        self._socket.close()

    def _accept(self) -> None:
        while not self._closed:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                if not self._closed:
                    log.exception("control socket failed")
                return
            with self._lock:
                if self._closed:
                    connection.close()
                    return
                self._connections.add(connection)
            threading.Thread(
                target=self._serve, args=(connection,), name="umvm-control-peer", daemon=True
            ).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                peer = protocol.peer_of(connection)
                protocol.caller.set(peer)
                if peer.uid not in (0, os.geteuid()):
                    log.warning("control connection of uid %d refused", peer.uid)
                    protocol.send(connection, _failure("not your VM", 13))
                    return
                while (received := protocol.receive(connection)) is not None:
                    protocol.send(connection, self._answer(*received))
        except (OSError, protocol.ProtocolError) as error:
            log.debug("control connection ended: %s", error)
        finally:
            with self._lock:
                self._connections.discard(connection)

    def _answer(self, message: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        verb, args = message.get("verb"), message.get("args", {})
        try:
            if message.get("v") != protocol.VERSION:
                return _failure(f"this VM speaks protocol {protocol.VERSION} only", 1)
            if not isinstance(verb, str) or not isinstance(args, dict):
                return _failure("malformed request", 2)
            return {"ok": True, "result": self._dispatch(verb, args, fds)}
        except UmvmError as error:
            return _failure(str(error), error.exit_code)
        except OSError as error:
            return _failure(in_a_line(error), exit_code_of(error.errno))
        except Exception as error:
            log.exception("verb %s failed", verb)
            return _failure(f"internal error: {type(error).__name__}: {error}", 1)
        finally:
            protocol.close_all(fds)


def _listen(path: Path) -> tuple[socket.socket, int]:
    """Make a listening socket at `path`, in place of a dead one; also its inode number."""
    if path.exists():
        if is_live(path):
            raise Exists(f"a VM named {path.name.removesuffix(protocol.SUFFIX)!r} is running")
        path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        os.chmod(path, 0o600)
        listener.listen(64)
        return listener, path.stat().st_ino
    except BaseException:
        listener.close()
        raise


def _failure(error: str, code: int) -> dict[str, Any]:
    return {"ok": False, "error": error, "code": code}
