"""The process that has a network namespace, and makes sockets in it for a VM.

Run as a program of its own: `kernel_helper.py FD [PROGRAM…]`. FD is a SOCK_SEQPACKET socket. The
first message that it sends is an errno, 0 when the namespace is ready; then each request `family,
type, protocol` is answered with an errno, and the socket (SCM_RIGHTS) if it is 0. It ends with that
socket, however the other side ends. PROGRAM is the way out, run in the host's network; `{}` in its
arguments is this process's id, and the namespace is ready when it has made a default route.
**Source**: user_namespaces(7), network_namespaces(7), netdevice(7), unix(7).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import signal
import socket
import struct
import sys
import time

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
REQUEST = struct.Struct("=iii")
ANSWER = struct.Struct("=i")
ROUTE_WAIT = 10.0
"""Seconds that the way out has time to make a route."""


def main() -> None:
    """Make the namespace, then serve."""
    control = socket.socket(fileno=int(sys.argv[1]))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_NAME, b"umvm-net", 0, 0, 0)
    way_out = WayOut(libc, sys.argv[2:], control) if len(sys.argv) > 2 else None
    try:
        try:
            enter_namespaces(libc)
            bring_up()
            if way_out is not None:
                way_out.go()
        except OSError as error:
            control.send(ANSWER.pack(error.errno or 1))
            return
        control.send(ANSWER.pack(0))
        serve(control)
    finally:
        if way_out is not None:
            way_out.end()


class WayOut:
    """The program that connects the namespace to the host's network; it ends with this process."""

    def __init__(self, libc: ctypes.CDLL, words: list[str], control: socket.socket) -> None:
        """Make its process, which stays on the outside and waits."""
        argv = [word.replace("{}", str(os.getpid())) for word in words]
        out, self._go = os.pipe()
        self._pid = os.fork()
        if self._pid:
            os.close(out)
            return
        try:
            control.close()
            os.close(self._go)
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            for number in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores
                signal.signal(number, signal.SIG_DFL)
            if os.read(out, 1):
                os.execvp(argv[0], argv)
        finally:
            os._exit(127)

    def go(self) -> None:
        """Start it and wait until there is a route. **Errors** ECHILD: it ended; ETIMEDOUT."""
        os.write(self._go, b"g")
        until = time.monotonic() + ROUTE_WAIT
        while not _has_default_route():
            if os.waitpid(self._pid, os.WNOHANG)[0]:
                self._pid = 0
                raise OSError(errno.ECHILD, "")
            if time.monotonic() > until:
                raise OSError(errno.ETIMEDOUT, "")
            time.sleep(0.02)

    def end(self) -> None:
        """End it."""
        if self._pid:
            os.kill(self._pid, signal.SIGTERM)
            os.waitpid(self._pid, 0)


def _has_default_route() -> bool:
    with open("/proc/self/net/route", encoding="ascii") as file:
        return any(line.split()[1:2] == ["00000000"] for line in file)


def enter_namespaces(libc: ctypes.CDLL) -> None:
    """Become root of a user namespace with a network of its own. OSError."""
    uid, gid = os.geteuid(), os.getegid()
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) < 0:
        raise OSError(ctypes.get_errno(), "unshare")
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"0 {uid} 1")
    _write("/proc/self/gid_map", f"0 {gid} 1")


def bring_up() -> None:
    """Loopback is up, and ping needs no raw socket. OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("=16sH22x", b"lo", 0)
        flags = struct.unpack_from("=H", fcntl.ioctl(sock, _SIOCGIFFLAGS, request), 16)[0]
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("=16sH22x", b"lo", flags | _IFF_UP))
    try:
        _write("/proc/sys/net/ipv4/ping_group_range", "0 0")
    except OSError:
        pass  # /proc is read-only in some containers


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def serve(control: socket.socket) -> None:
    """Make sockets until the other side is gone."""
    while True:
        request = control.recv(REQUEST.size)
        if len(request) < REQUEST.size:
            return
        try:
            with socket.socket(*REQUEST.unpack(request)) as made:
                socket.send_fds(control, [ANSWER.pack(0)], [made.fileno()])
        except OSError as error:
            control.send(ANSWER.pack(error.errno or 1))


if __name__ == "__main__":
    main()
