"""The stack `kernel`: a network of its own in the host's kernel, by a network namespace.

A helper process (kernel_helper.py) lives in the namespace and makes the sockets; everything else
about them is the kernel's, netlink, ping and packet sockets included. As the guests' user owns the
namespace, guests may configure it, without any privilege on the host.

Options: `exit=` the way out, by a program that must be installed: `slirp4netns` or `pasta`, or
`auto` for whichever there is. `unix=private`: AF_UNIX sockets are made there too, so that abstract
names are private to the users of the stack.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from umvm import Reply
from umvm.errors import UmvmError, UsageError
from umvm.interfaces.network import Made, NetworkStack

from . import ifnames, kernel_helper

if TYPE_CHECKING:
    from umvm import Request
    from umvm.routes import Route

_SPACE = "/proc/{}/ns/"
_CLOSED = "-t none -u none -T none -U none".split()
WAYS_OUT = {
    "slirp4netns": [
        "slirp4netns", "--configure", "--mtu=65520", "--disable-host-loopback",
        f"--userns-path={_SPACE}user", "--netns-type=path", f"{_SPACE}net", "tap0",
    ],
    "pasta": [
        "pasta", "--foreground", "--quiet", "--config-net", *_CLOSED,
        *(["--runas", "0:0"] if os.geteuid() == 0 else []),
        "--userns", f"{_SPACE}user", "--netns", f"{_SPACE}net",
    ],
}  # fmt: skip
"""Programs that connect a namespace to the host's network; `{}` is the helper's process id."""
_SETTINGS = (
    ("kernel.unprivileged_userns_clone", "0"),
    ("kernel.apparmor_restrict_unprivileged_userns", "1"),
    ("user.max_user_namespaces", "0"),
    ("user.max_net_namespaces", "0"),
)
"""Settings of the host, and the value with which they forbid what the helper does."""
_END_WAIT = 5.0


class KernelStack(NetworkStack):
    """A network namespace."""

    def __init__(self, vm: Any, exit_by: str = "", unix: bool = False) -> None:
        """Start the helper. UmvmError: the host doesn't let us."""
        self._vm, self._unix = vm, unix
        self._lock = threading.Lock()
        self.exit = _installed(exit_by) if exit_by else ""
        said = os.memfd_create("umvm-net-errors")
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        argv = [sys.executable, "-I", "-S", "-B", kernel_helper.__file__, str(theirs.fileno())]
        try:
            with theirs:
                self._helper = subprocess.Popen(
                    argv + WAYS_OUT.get(self.exit, []), stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL, stderr=said, pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                )  # fmt: skip
            answer = self._control.recv(kernel_helper.ANSWER.size) or b"\0\0\0\0\1"
            number = kernel_helper.ANSWER.unpack(answer)[0] if len(answer) == 4 else errno.ECHILD
            if number:
                self.close()
                raise UmvmError(self._failure(number, os.pread(said, 4096, 0)))
        finally:
            os.close(said)

    def _failure(self, number: int, said: bytes) -> str:
        lines = said.decode(errors="replace").strip().splitlines() or [""]
        if number == errno.ECHILD:
            return f"kernel: {self.exit or 'the helper process'} has failed: {lines[-1]}"
        if number == errno.ETIMEDOUT:
            return f"kernel: {self.exit} makes no route"
        return f"kernel: no network namespace: {refusal_text(number)}"

    @property
    def pid(self) -> int:
        """The helper's process id."""
        return self._helper.pid

    # --- the stack's interface -------------------------------------------------------------------

    def socket(self, req: Request, family: int, kind: int, protocol: int) -> Made | None:
        """socket(2) in the namespace. **Errors** of socket(2); ENETDOWN: the helper is gone."""
        if family == socket.AF_UNIX and not self._unix:
            return None
        request = kernel_helper.REQUEST.pack(family, kind, protocol)
        with self._lock:
            try:
                self._control.send(request)
                answer, fds, _, _ = socket.recv_fds(self._control, kernel_helper.ANSWER.size, 1)
            except OSError:
                answer, fds = b"", []
        if len(answer) < kernel_helper.ANSWER.size:
            raise OSError(errno.ENETDOWN, os.strerror(errno.ENETDOWN))
        (number,) = kernel_helper.ANSWER.unpack(answer)
        if number:
            raise OSError(number, os.strerror(number))
        return Made(fds[0])

    def routes(self) -> Sequence[Route]:
        """Questions about interfaces on sockets of the host."""
        return [ifnames.route(self._vm, self, self._interface)]

    def _interface(self, req: Request) -> Reply:
        """Ask in the namespace. **Errors** ENODEV, EADDRNOTAVAIL, EFAULT."""
        command, at = req.args[1] & 0xFFFFFFFF, req.args[2]
        request = req.read(at, ifnames.IFREQ)
        made = self.socket(req, socket.AF_INET, socket.SOCK_DGRAM, 0)
        assert made is not None
        with socket.socket(fileno=made.fd) as sock:
            req.write(at, fcntl.ioctl(sock, command, request))
        return Reply.value(0)

    def describe(self) -> str:
        """The helper, for nsenter(1)."""
        way = f" exit {self.exit}" if self.exit else ""
        return f"kernel pid {self.pid}{way}\n"

    def resolv_conf(self) -> str | None:
        """The nameserver that slirp4netns offers."""
        return "nameserver 10.0.2.3\n" if self.exit == "slirp4netns" else None

    def close(self) -> None:
        """End the helper and the way out; sockets that exist keep working."""
        self._control.close()
        try:
            self._helper.wait(_END_WAIT)
        except subprocess.TimeoutExpired:
            self._helper.kill()
            self._helper.wait()


def _installed(wanted: str) -> str:
    """The way out to use. UmvmError: there is none."""
    for name in WAYS_OUT:
        if wanted in ("auto", name) and shutil.which(name):
            return name
    what = " or ".join(WAYS_OUT) if wanted == "auto" else wanted
    raise UmvmError(f"kernel: exit={wanted}: {what} is not installed")


def refusal_text(number: int) -> str:
    """Why the host makes no namespaces, with the setting that says so if it can be found."""
    closed = [f"{name} is {value}" for name, value in _SETTINGS if _setting(name) == value]
    text = os.strerror(number)
    return f"{text} ({', '.join(closed)})" if closed else text


def _setting(name: str) -> str:
    try:
        with open("/proc/sys/" + name.replace(".", "/"), encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def make(vm: Any, argument: str, options: dict[str, str]) -> KernelStack:
    """A network namespace. UsageError: an option."""
    unknown = set(options) - {"exit", "unix"}
    if argument or unknown:
        bad = argument or min(unknown)
        raise UsageError(f"kernel: unknown option {bad!r} (there are exit, unix)")
    exit_by = options.get("exit", "")
    if "exit" in options and exit_by not in (*WAYS_OUT, "auto"):
        raise UsageError(f"kernel: exit is one of {', '.join(WAYS_OUT)}, auto, not {exit_by!r}")
    if options.get("unix", "private") != "private":
        raise UsageError("kernel: unix can be private only")
    return KernelStack(vm, exit_by, "unix" in options)
