"""Who is at the other end of AF_UNIX sockets, by every call that tells; for root, real or virtual."""

from __future__ import annotations

import os
import socket
import struct
import sys
from functools import partial

print = partial(print, flush=True)
PASSCRED, PEERCRED, PEERGROUPS = 16, 17, 59
RIGHTS, CREDENTIALS = 1, 2
UCRED = struct.Struct("iII")


def peer(sock: socket.socket) -> tuple[int, ...]:
    return UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, PEERCRED, 12))


def shown(ancillary: list[tuple[int, int, bytes]]) -> list[object]:
    found: list[object] = []
    for _, kind, data in sorted(ancillary):
        if kind == RIGHTS:
            fds = struct.unpack(f"{len(data) // 4}i", data)
            same = [os.fstat(fd).st_ino == os.fstat(at).st_ino for at, fd in enumerate(fds)]
            found.append(("descriptors", same))
            for fd in fds:
                os.close(fd)
        else:
            found.append(UCRED.unpack(data)[1:])
    return found


def client(path: str, ready: int) -> None:
    os.setgroups([5, 6])
    os.setresgid(34, 34, 34)
    os.setresuid(33, 33, 33)
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    print("server", peer(sock)[1:])
    os.write(ready, b"x")
    sock.recv(1)
    sock.sendmsg([b"plain"])
    sock.recv(1)
    try:
        sock.sendmsg([b"forged"], [(1, CREDENTIALS, UCRED.pack(os.getpid(), 0, 0))])
        print("forged")
    except OSError as error:
        print("forging fails", error.errno)
    sock.sendmsg([b"explicit"], [(1, CREDENTIALS, UCRED.pack(os.getpid(), 33, 34))])


def main(path: str) -> None:
    a, b = socket.socketpair(socket.AF_UNIX)
    print("pair", peer(a)[1:], peer(b)[1:])
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    os.chmod(path, 0o777)
    server.listen()
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        client(path, write)
        os._exit(0)
    conn, _ = server.accept()
    os.read(read, 1)
    print("client", peer(conn)[0] == pid, peer(conn)[1:])
    print("groups", struct.unpack("2I", conn.getsockopt(1, PEERGROUPS, 8)))
    try:
        conn.getsockopt(1, PEERGROUPS, 4)
    except OSError as error:
        print("no room", error.errno)
    conn.setsockopt(1, PASSCRED, 1)
    for count in range(2):
        conn.send(b"%d" % count)
        data, ancillary, flags, _ = conn.recvmsg(100, 100)
        print(data, shown(ancillary), flags)
    os.waitpid(pid, 0)
    print("end", conn.recvmsg(10, 100)[0], peer(conn)[1:])
    x, y = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    y.setsockopt(1, PASSCRED, 1)
    rights = (1, RIGHTS, struct.pack("ii", 0, 1))
    x.sendmsg([b"abc", b"def"], [(1, CREDENTIALS, UCRED.pack(os.getpid(), 12, 13)), rights])
    data, ancillary, flags, _ = y.recvmsg(4, 200)
    print(data, shown(ancillary), flags & socket.MSG_TRUNC)
    y.setblocking(False)
    try:
        y.recvmsg(10, 100)
    except BlockingIOError:
        print("would block")
    x.send(b"by itself")
    data, ancillary, _, _ = y.recvmsg(10, 100)
    print(data, shown(ancillary))


main(sys.argv[1])
