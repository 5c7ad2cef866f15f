"""The operator's end of the control socket: find a VM, ask it for something."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from umvm.control import protocol
from umvm.errors import NotFound, RemoteError, UmvmError

ENV = "UMVM_SOCKET"
"""Set for guests: the control socket of the VM they are in."""


class Vm(NamedTuple):
    """A running VM: its name, its control socket, its supervisor's process id."""

    name: str
    path: Path
    pid: int


def call(
    path: str | Path, verb: str, args: Mapping[str, Any] | None = None, fds: Sequence[int] = ()
) -> Any:
    """Ask the VM at `path` for `verb` and return its result.

    **Errors** RemoteError: the VM answered with an error. NotFound: nobody listens there.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            sock.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            raise NotFound(f"no VM listens at {path}") from None
        except OSError as error:
            raise UmvmError(f"{path}: {error.strerror}") from error
        try:
            request = {"v": protocol.VERSION, "verb": verb, "args": dict(args or {})}
            protocol.send(sock, request, fds)
            received = protocol.receive(sock)
        except OSError as error:
            raise UmvmError(f"the VM closed the connection: {error.strerror}") from error
    if received is None:
        raise UmvmError("the VM closed the connection")
    answer, unexpected = received
    protocol.close_all(unexpected)
    if not answer.get("ok"):
        raise RemoteError(str(answer.get("error", "unknown error")), int(answer.get("code", 1)))
    return answer.get("result")


def is_live(path: Path) -> bool:
    """Tell whether somebody listens at a control socket."""
    return _listener(path) is not None


def list_vms() -> list[Vm]:
    """Return this user's running VMs by name; sockets nobody listens at are removed."""
    found = []
    directory = protocol.socket_dir()
    with protocol.locked(directory):
        for path in sorted(directory.glob(f"*{protocol.SUFFIX}")):
            peer = _listener(path)
            if peer is None:
                path.unlink(missing_ok=True)
            else:
                found.append(Vm(path.name.removesuffix(protocol.SUFFIX), path, peer.pid))
    return found


def find_vm(wanted: str | int | None = None) -> Path:
    """Return the control socket of a VM: by name, by pid, or the obvious one.

    The pid may be that of the supervisor (`umvm run`) or of a guest. With None it is the VM this
    process is in ($UMVM_SOCKET), else the only one that runs.
    **Errors** NotFound: there is none, or more than one.
    """
    if wanted is None and os.environ.get(ENV):
        return Path(os.environ[ENV])
    vms = list_vms()
    if wanted is not None:
        for vm in vms:
            if str(wanted) in (vm.name, str(vm.pid)):
                return vm.path
        if str(wanted).isdecimal():
            for vm in vms:
                if _belongs(int(wanted), vm):
                    return vm.path
        raise NotFound(f"no VM named {wanted}{_candidates(vms)}")
    if len(vms) != 1:
        what = "several VMs are running; name one with --vm" if vms else "no VM is running"
        raise NotFound(f"{what}{_candidates(vms)}")
    return vms[0].path


def _belongs(pid: int, vm: Vm) -> bool:
    """Was the process `pid` started in the VM?"""
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return f"{ENV}={vm.path}".encode() in variables


def _candidates(vms: Sequence[Vm]) -> str:
    return f" (running: {', '.join(vm.name for vm in vms)})" if vms else ""


def _listener(path: Path) -> protocol.Peer | None:
    """Who listens at a control socket, by a connection that asks nothing; None: nobody."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        try:
            sock.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return None
        except BlockingIOError:  # a queue of connections that nobody accepts: alive, but stuck
            return protocol.Peer(0, 0, 0)
        return protocol.peer_of(sock)
