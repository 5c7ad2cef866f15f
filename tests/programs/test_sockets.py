"""AF_UNIX sockets bound in a mount, natively and in a VM."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Result

COMMON = r"""
import array, ctypes, errno, os, select, socket, stat, struct, sys, threading, time
top = os.getcwd()
def tried(function, *args):
    try:
        value = function(*args)
    except OSError as error:
        return errno.errorcode[error.errno]
    return value if not isinstance(value, socket.socket) else "socket"
def stream(): return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
def datagram(): return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
def local(name):
    return name.replace(top, "TOP") if isinstance(name, str) else name
"""
BODIES = {
    "stream": r"""
s = stream(); s.bind("a"); s.listen(3)
st = os.lstat("a"); print(stat.filemode(st.st_mode), st.st_size, st.st_nlink)
for name in ("a", "./a", top + "/a", "../" + os.path.basename(top) + "/a"):
    c = stream(); c.connect(name); d, who = s.accept()
    c.sendall(b"hello"); print(d.recv(10), who, local(c.getpeername()), c.getsockname(), d.getsockname(), d.getpeername())
    d.sendall(b"back"); d.close(); print(c.recv(10), c.recv(10)); c.close()
print(s.getsockname(), tried(s.bind, "b"), tried(stream().bind, "a"), tried(stream().connect, "none"))
os.symlink("a", "l"); c = stream(); c.connect("l"); print(c.getpeername()); print(tried(stream().bind, "l"))
open("f", "w").close(); os.mkdir("d"); print(tried(stream().connect, "f"), tried(stream().connect, "d"), tried(stream().bind, "f"))
print(tried(stream().bind, "none/x"), tried(stream().bind, "f/x"), tried(stream().connect, "f/x"), tried(stream().bind, "d/"), tried(stream().bind, "e/"))
print(tried(open, "a"), tried(os.open, "a", os.O_PATH | os.O_CLOEXEC) is not None, tried(datagram().connect, "a"))
p = os.fork()
if p == 0:
    c = stream(); c.connect("a"); c.sendall(str(os.getppid() == os.getpid()).encode()); os._exit(0)
d = s.accept()[0];
while d.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[:4] != struct.pack("i", p): d = s.accept()[0]
print(d.recv(100)); pid, uid, gid = struct.unpack("3i", d.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)); print(pid == p, uid == os.getuid(), gid == os.getgid()); os.wait()
s.close(); print(tried(stream().connect, "a")); os.unlink("a"); print(tried(stream().connect, "a"), tried(os.stat, "a"))
s = stream(); s.bind("a"); print(tried(stream().connect, "a")); s.listen(); c = stream(); c.connect("a"); print("again")
c.setblocking(False); print(tried(c.recv, 1)); s.setblocking(False); s.accept(); print(tried(s.accept)); e = select.epoll(); e.register(s, select.EPOLLIN); c2 = stream(); c2.connect("a"); print(len(e.poll(2)))
full = [stream() for _ in range(200)]; n = stream(); n.bind("n"); n.listen(0); [x.setblocking(False) for x in full]; r = [tried(x.connect, "n") for x in full[:3]]; print(r)
""",
    "names": r"""
s = stream(); s.bind("x"); s.listen(); os.rename("x", "y"); c = stream(); c.connect("y"); print(c.getpeername(), s.getsockname(), tried(stream().connect, "x"))
os.link("y", "z"); os.unlink("y"); c = stream(); c.connect("z"); print(c.getpeername(), os.stat("z").st_nlink); os.mkdir("d"); os.rename("z", "d/z"); os.rename("d", "e"); c = stream(); c.connect("e/z"); print("moved", c.getpeername())
os.chdir("e"); c = stream(); c.connect("z"); c2 = stream(); c2.connect("../e/z"); t = stream(); t.bind("t"); print(t.getsockname(), sorted(os.listdir("."))); os.chdir("/"); print(tried(stream().connect, "t")); os.chdir(top)
os.unlink("e/z"); print(tried(stream().connect, "e/z")); c = datagram(); c.bind("e/z"); print(c.getsockname()); os.replace("e/t", "e/z"); print(sorted(os.listdir("e"))); t.listen(); c = stream(); c.connect("e/z"); print("replaced")
room = 107 - len(top) - 1
for n in (room - 1, room, room + 1):
    if n > 0:
        print(n - room, tried(lambda: stream().bind(top + "/" + "p" * n)) if n <= room else "too long")
deep = "q" * 107; u = stream(); u.bind(deep); u.listen(); print(len(u.getsockname())); c = stream(); c.connect(deep); print(len(c.getpeername())); os.unlink(deep)
long = "d" * 60; os.makedirs(long + "/" + long); os.chdir(long + "/" + long); v = stream(); v.bind("short"); v.listen(); c = stream(); c.connect("short"); c = stream(); c.connect("./../" + long + "/short"); print("deep", c.getpeername()[-6:]); os.chdir(top)
libc = ctypes.CDLL(None, use_errno=True)
def raw(call, sock, path, size):
    data = struct.pack("H", socket.AF_UNIX) + path
    r = getattr(libc, call)(sock.fileno(), data, size if size is not None else len(data)); return r if r >= 0 else errno.errorcode[ctypes.get_errno()]
w = stream(); print(raw("bind", w, b"r" * 108, 110), os.path.exists("r" * 108)); w2 = stream(); print(raw("bind", w2, b"s" * 109, 111), raw("bind", w2, b"", 2), raw("bind", w2, b"", 0), raw("bind", w2, b"", 1), raw("bind", w2, b"t\0\0garbage", None), os.path.exists("t"))
print(raw("connect", stream(), b"", 2), raw("connect", stream(), b"", 3), raw("connect", stream(), b"t", 1), raw("connect", stream(), b"t\0", None))
print(libc.bind(stream().fileno(), 0, 10), errno.errorcode[ctypes.get_errno()], libc.bind(999, b"\1\0x", 4), errno.errorcode[ctypes.get_errno()], libc.bind(0, b"\1\0x", 4), errno.errorcode[ctypes.get_errno()], libc.connect(0, b"\1\0e/z", 6), errno.errorcode[ctypes.get_errno()])
a = stream(); a.bind("\0" + "abstract" + str(os.getpid())); a.listen(); c = stream(); c.connect(a.getsockname()); print(a.getsockname()[:9], type(a.getsockname())); auto = stream(); auto.bind(""); print(len(auto.getsockname()))
i = socket.socket(socket.AF_INET); print(raw("bind", i, b"e/z\0", None), raw("connect", i, b"e/z\0", None)); i.bind(("127.0.0.1", 0)); i.listen(); print(tried(socket.create_connection, i.getsockname()))
def short(call, sock, room):
    buf = ctypes.create_string_buffer(b"#" * 200, 200); n = ctypes.c_int(room); r = getattr(libc, call)(sock.fileno(), buf, ctypes.byref(n)); return r if r >= 0 else errno.errorcode[ctypes.get_errno()], n.value, buf.raw[:12]
for room in (-1, 0, 1, 2, 4, 5, 6, 7, 100): print(short("getsockname", c, room)[:2], short("getpeername", c, room)[1:], short("getsockname", t, room))
print(libc.getsockname(t.fileno(), 0, 0), errno.errorcode[ctypes.get_errno()])
""",
    "datagrams": r"""
s = datagram(); s.bind("s"); c = datagram(); c.bind("c"); n = datagram()
print(c.sendto(b"one", "s"), s.recv(10)); print(n.sendto(b"unnamed", top + "/s")); print(s.recvfrom(10)); c.connect("s"); print(c.send(b"connected"), s.recv(10)); print(tried(n.sendto, b"x", "none"), tried(n.sendto, b"x", "."), tried(n.send, b"x"))
print(c.sendmsg([b"a", b"bc"], [], 0, "s"), s.recv(10)); r, w = os.pipe(); print(n.sendmsg([b"fd"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [w]))], 0, "s")); data, anc, flags, addr = s.recvmsg(10, 100); fd = array.array("i", anc[0][2])[0]; os.write(fd, b"through"); print(data, os.read(r, 10))
f = open("file", "w+"); print(n.sendmsg([b"file"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [f.fileno(), os.open(".", 0)]))], 0, "s")); data, anc, *_ = s.recvmsg(10, 100); a, b = array.array("i", anc[0][2]); os.write(a, b"in the file"); print(open("file").read(), sorted(os.listdir(b)), os.fstat(a).st_ino == os.stat("file").st_ino); f.seek(0); print(f.read())
s.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1); n.sendto(b"cred", "s"); data, anc, *_ = s.recvmsg(10, 100); pid, uid, gid = struct.unpack("3i", anc[0][2]); print(pid == os.getpid(), uid == os.getuid())
s.setblocking(False)
def fill():
    k = 0
    while True:
        k += 1
        n.sendto(b"y" * 100, socket.MSG_DONTWAIT, "s")
print(tried(fill)); count = 0
while tried(s.recv, 1000) not in ("EAGAIN",): count += 1
print(count > 0); print(tried(n.sendto, b"z" * 10000000, "s")); x = stream(); x.bind("x"); x.listen(); print(tried(n.sendto, b"q", "x"), tried(n.connect, "x"), tried(x.sendto, b"q", "s"))
d = datagram(); d.bind("d"); d.connect("s"); print(tried(n.sendto, b"no", "d")); print(tried(c.sendto, b"yes", "d"))
# the name that a datagram comes from can be answered
e = datagram(); e.bind("e"); s.setblocking(True); e.sendto(b"ping", "s"); data, who = s.recvfrom(10); s.sendto(b"pong", who); print(e.recv(10))
libc = ctypes.CDLL(None, use_errno=True)
class iovec(ctypes.Structure): _fields_ = [("base", ctypes.c_char_p), ("len", ctypes.c_size_t)]
class msghdr(ctypes.Structure): _fields_ = [("name", ctypes.c_char_p), ("namelen", ctypes.c_uint), ("iov", ctypes.POINTER(iovec)), ("iovlen", ctypes.c_size_t), ("control", ctypes.c_void_p), ("controllen", ctypes.c_size_t), ("flags", ctypes.c_int)]
class mmsghdr(ctypes.Structure): _fields_ = [("hdr", msghdr), ("len", ctypes.c_uint)]
m = (mmsghdr * 7)(); keep = []
for k in range(7):
    iov = iovec(b"m%d" % k * (k + 1), 2 * (k + 1)); keep.append(iov); name = struct.pack("H", 1) + (b"s\0", b"c\0", b"s\0")[k % 3]; keep.append(name)
    m[k].hdr = msghdr(name, len(name), ctypes.pointer(iov), 1, None, 0, 0)
sent = 0
c2 = datagram(); os.unlink("c"); c2.bind("c")
while sent < 7:
    r = libc.sendmmsg(n.fileno(), ctypes.byref(m, sent * ctypes.sizeof(mmsghdr)), 7 - sent, 0)
    if r <= 0: print("failed", r, errno.errorcode[ctypes.get_errno()]); break
    sent += r
print(sent, [x.len for x in m]); s.setblocking(False); c2.setblocking(False); print([tried(s.recv, 99) for _ in range(6)], [tried(c2.recv, 99) for _ in range(3)])
""",
    "rights": r"""
s = stream(); os.umask(0o027); s.bind("a"); print(stat.filemode(os.stat("a").st_mode)); s.listen(); os.chmod("a", 0); print(tried(stream().connect, "a") if os.getuid() else "root"); os.chmod("a", 0o700); print(tried(stream().connect, "a")); os.chown("a", os.getuid(), os.getgid()); os.utime("a", (1, 2)); print(os.stat("a").st_mtime)
os.mkdir("d", 0o500); print(tried(stream().bind, "d/x") if os.getuid() else "root"); os.chmod("d", 0o600); print(tried(stream().connect, "d/x") if os.getuid() else "root"); print(os.access("a", os.W_OK), tried(os.truncate, "a", 0), tried(os.readlink, "a")); os.chmod("d", 0o700); os.chown("d", -1, -1); os.fchmod(s.fileno(), 0o600); print(stat.filemode(os.fstat(s.fileno()).st_mode), stat.filemode(os.stat("a").st_mode))
os.mknod("m", 0o600 | stat.S_IFSOCK); print(stat.filemode(os.stat("m").st_mode), tried(stream().connect, "m"), tried(stream().bind, "m")); os.unlink("m"); b = stream(); b.bind("m"); print("rebound")
""",
    "threads and waiting": r"""
s = stream(); s.bind("s"); s.listen(64); seen = []
def serve():
    for _ in range(40):
        c, _ = s.accept(); seen.append(c.recv(100)); c.sendall(b"ok"); c.close()
t = threading.Thread(target=serve); t.start(); answers = []
def ask(k):
    c = stream(); c.connect("s" if k % 2 else top + "/s"); c.sendall(b"%d" % k); answers.append(c.recv(10)); c.close()
ts = [threading.Thread(target=ask, args=(k,)) for k in range(40)]; [x.start() for x in ts]; [x.join() for x in ts]; t.join(); print(sorted(map(int, seen)) == list(range(40)), set(answers))
import signal
s2 = stream(); s2.bind("w"); s2.listen(0); hold = [stream() for _ in range(4)]
hits = []; signal.signal(signal.SIGALRM, lambda *a: hits.append(1)); c = stream(); c.connect("w"); signal.setitimer(signal.ITIMER_REAL, 0.2)
def raising(*a): raise TimeoutError
signal.signal(signal.SIGALRM, raising)
try:
    for h in hold: h.connect("w")
    print("not full")
except TimeoutError: print("interrupted while it waited")
a, b = socket.socketpair(); a.send(b"pair"); print(b.recv(10), a.getsockname(), a.getpeername()); s3 = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s3.bind("q"); s3.listen(); c = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); c.connect("q"); d = s3.accept()[0]; c.send(b"one"); c.send(b"two"); print(d.recv(10), d.recv(10)); d.close(); print(c.recv(10))
""",
    "libraries": r"""
import asyncio, multiprocessing.connection as mc, socketserver, http.server, http.client, logging.handlers
class H(socketserver.StreamRequestHandler):
    def handle(self): self.wfile.write(self.rfile.readline().upper())
with socketserver.ThreadingUnixStreamServer("ss", H) as server:
    threading.Thread(target=server.serve_forever).start(); c = stream(); c.connect("ss"); c.sendall(b"loud\n"); print(c.makefile().readline()); server.shutdown()
with mc.Listener("ml", "AF_UNIX") as l:
    t = threading.Thread(target=lambda: l.accept().send([1, "two"])); t.start(); print(mc.Client("ml", "AF_UNIX").recv()); t.join()
print(os.path.exists("ml"))
async def main():
    async def handle(r, w): w.write(await r.readline()); await w.drain(); w.close()
    server = await asyncio.start_unix_server(handle, "as"); r, w = await asyncio.open_unix_connection("as"); w.write(b"line\n"); print(await r.readline()); w.close(); server.close()
    p = await asyncio.create_subprocess_exec("cat", stdin=-1, stdout=-1); print(await p.communicate(b"piped"))
asyncio.run(main())
log = datagram(); log.bind("log"); h = logging.handlers.SysLogHandler("log"); logging.getLogger().addHandler(h); logging.warning("message"); print(log.recv(100))
""",
}


@pytest.mark.parametrize("name", BODIES)
def test_sockets(assert_same: Callable[..., Result], name: str) -> None:
    argv = ["/usr/bin/python3", "-I", "-S", "-c", COMMON + BODIES[name]]
    result = assert_same(argv, stderr=True, timeout=25)
    assert result.status == 0, result


def test_the_host_sees_nothing_and_is_reached(
    umvm_run: Callable[..., Result], tmp_path: Path
) -> None:
    """A served socket has no name outside; a host socket is reached by a link in a mount."""
    (tmp_path / "m").mkdir()
    body = f"""
import os, socket
os.chdir({str(tmp_path)!r})
s = socket.socket(socket.AF_UNIX); s.bind("m/a"); s.listen()
h = socket.socket(socket.AF_UNIX); h.bind("h"); h.listen()
os.symlink("../h", "m/l")
c = socket.socket(socket.AF_UNIX); c.connect("m/l"); print(h.accept()[0] is not None)
c = socket.socket(socket.AF_UNIX); c.connect("m/../h"); print(h.accept()[0] is not None)
h2 = socket.socket(socket.AF_UNIX); h2.bind("m/../h2"); print(os.path.exists("h2"), h2.getsockname()[-2:])
d = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); d.bind("d"); os.symlink("../d", "m/d")
e = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); e.sendto(b"to the host", "m/d"); print(d.recv(20))
"""
    mounts = [f"memory:none:{tmp_path}/m"]
    result = umvm_run([sys.executable, "-c", body], mounts=mounts)
    assert result.stdout == "True\nTrue\nTrue h2\nb'to the host'\n", result
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix != ".log") == ["d", "h", "h2", "m"]
    assert not list((tmp_path / "m").iterdir())
