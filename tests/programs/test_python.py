"""Python's library on served files: files, modules, processes, environments."""

from __future__ import annotations

import pytest
from same import Same

SCRIPTS = {
    "files": r"""
cat >t.py <<'END'
import errno, fcntl, filecmp, glob, io, mmap, os, pathlib, shutil, stat, tempfile
def tried(f, *a, **k):
    try: return f(*a, **k)
    except OSError as e: return errno.errorcode[e.errno], e.filename
top = pathlib.Path.cwd(); p = pathlib.Path("d/e"); p.mkdir(parents=True); (p / "f").write_text("text\n" * 10)
print(p.joinpath("f").read_text().count("text"), (p / "f").resolve() == top / "d/e/f", sorted(map(str, top.rglob("*")))[-1][len(str(top)):])
(p / "l").symlink_to("f"); (p / "h").hardlink_to(p / "f"); print((p / "l").is_symlink(), (p / "h").samefile(p / "l"), (p / "f").stat().st_nlink, (p / "l").readlink())
print([(e.name, e.is_dir(), e.is_symlink(), e.stat(follow_symlinks=False).st_size) for e in sorted(os.scandir(p), key=lambda e: e.name)])
print(tried(os.open, "none", os.O_RDONLY), tried(os.open, p / "f", os.O_CREAT | os.O_EXCL), tried(os.rmdir, "d"), tried(os.listdir, p / "f"), tried(os.mkdir, "d"), tried(os.readlink, p / "f"), tried(os.rename, "d", "d/e/x"), tried(os.link, "d", "x"))
with open("f", "w+b", buffering=0) as f:
    print(f.write(b"0123456789" * 1000), f.seek(-5, 2), f.read(), f.seek(3), f.readinto(bytearray(4)), f.tell(), f.truncate(100), f.seek(0, 2), os.fstat(f.fileno()).st_size)
    print(os.pwritev(f.fileno(), [b"ab", b"cd"], 98), os.preadv(f.fileno(), [bytearray(3), bytearray(9)], 96), os.posix_fallocate(f.fileno(), 0, 5000), os.fstat(f.fileno()).st_size, os.lseek(f.fileno(), 0, os.SEEK_END))
    fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB); fcntl.flock(f, fcntl.LOCK_SH)
    if not os.fork():
        with open("f", "r+b") as g: os._exit(tried(fcntl.lockf, g, fcntl.LOCK_EX | fcntl.LOCK_NB)[0] != "EAGAIN")
    print("locked", os.wait()[1])
with open("f", "r+b") as f, mmap.mmap(f.fileno(), 0) as m:
    m[1000:1004] = b"mmap"; m.flush(); print(os.pread(f.fileno(), 4, 1000), m.find(b"mmap"), m.resize(9000), os.fstat(f.fileno()).st_size); f.seek(2000); f.write(b"written"); f.flush(); print(m[2000:2007])
    if not os.fork(): m[3000:3005] = b"child"; os._exit(0)
    os.wait(); print(m[3000:3005], os.pread(f.fileno(), 5, 3000))
with mmap.mmap(os.open("f", os.O_RDWR), 100, mmap.MAP_PRIVATE) as m: m[:3] = b"xyz"; print(open("f", "rb").read(3), m[:3])
with open("t", "w", encoding="utf-16", newline="\r\n") as f: f.write("eins\nzwei\nü\n"); print(f.tell(), f.encoding)
with open("t", encoding="utf-16") as f: print(f.readline(), end=""); at = f.tell(); print(f.read().split(), f.seek(at) == at, f.readline().strip())
with io.open("t", "rb") as f: print(len(f.peek(4)) >= 4, f.read1(3), f.raw.tell() >= 3)
os.utime("t", ns=(1_000_000_001, 2_000_000_002)); s = os.stat("t"); print(s.st_atime_ns, s.st_mtime_ns); os.chmod("t", 0o4751); print(stat.filemode(os.stat("t").st_mode), oct(os.umask(0o22)))
shutil.copytree("d", "copy", symlinks=True); print(filecmp.dircmp("d", "copy").diff_files, filecmp.cmp("d/e/f", "copy/e/f", shallow=False), shutil.copy2("t", "t2"), os.stat("t2").st_mtime_ns, shutil.move("copy", "moved")); print(sorted(glob.glob("**/*", recursive=True)))
for kind in ("zip", "tar", "gztar", "xztar"): shutil.unpack_archive(shutil.make_archive(f"a-{kind}", kind, "d"), f"x-{kind}"); print(sorted(os.listdir(f"x-{kind}/e")))
print(shutil.disk_usage(".").total > 0, shutil.which("sh") == shutil.which("sh", path=os.environ["PATH"])); shutil.rmtree("moved"); print(os.path.exists("moved"), tried(shutil.rmtree, "moved"))
with tempfile.TemporaryFile(dir=".") as f: f.write(b"anonymous"); f.seek(0); print(f.read(), os.fstat(f.fileno()).st_nlink)
with tempfile.NamedTemporaryFile(dir=".", suffix=".x") as f: print(os.path.exists(f.name), stat.filemode(os.fstat(f.fileno()).st_mode))
with tempfile.TemporaryDirectory(dir=".") as d, tempfile.SpooledTemporaryFile(10, dir=d) as s: s.write(b"x" * 100); print(os.listdir(d), s.tell())
os.mkfifo("p")
if not os.fork(): open("p", "w").write("fifo"); os._exit(0)
print(open("p").read(), os.wait()[1], stat.S_ISFIFO(os.stat("p").st_mode)); fd = os.open("d", os.O_RDONLY | os.O_DIRECTORY)
print(sorted(os.listdir(fd)), os.stat("e/f", dir_fd=fd).st_size, os.readlink("e/l", dir_fd=fd), [(r[len(str(top)):], sorted(d), sorted(f)) for r, d, f, _ in os.fwalk(str(top / "d"))]); os.mkdir("n", 0o700, dir_fd=fd); os.rename("n", "o", src_dir_fd=fd, dst_dir_fd=fd); os.fchdir(fd); print(os.getcwd() == str(top / "d"), sorted(os.listdir()))
os.chdir(top); old = os.getcwd(); os.mkdir("gone"); os.chdir("gone"); os.rmdir("../gone"); print(tried(os.getcwd), tried(os.listdir), os.listdir(".") if tried(os.stat, "..")[0] == 1 else ""); os.chdir(top)
END
/usr/bin/python3 -X dev -W error::ResourceWarning -W ignore t.py 2>&1 | sed "s,$PWD,,"
""",
    "processes": r"""
cat >t.py <<'END'
import asyncio, concurrent.futures, multiprocessing, os, signal, subprocess, sys, threading
from multiprocessing import shared_memory
def work(n):
    with open(f"w{n}", "w") as f: f.write("x" * n)
    return os.path.getsize(f"w{n}"), os.path.basename(os.getcwd())
def count(lock, times):
    for _ in range(times):
        with lock, open("counter", "r+") as f: n = int(f.read()); f.seek(0); f.write(str(n + 1))
def talk(c): c.send(os.listdir("d")); c.send(c.recv() * 2); c.close()
def attach(name): m = shared_memory.SharedMemory(name); m.buf[0] = 42; m.close()
def main():
    os.mkdir("d"); run = subprocess.run
    print(run(["cat"], stdin=open("t.py"), stdout=open("out", "w")).returncode, os.path.getsize("out") == os.path.getsize("t.py"))
    print(run(["pwd"], cwd="d", capture_output=True, text=True).stdout.strip()[-2:], run("echo $0 $PPID >pid; exit 3", shell=True).returncode, int(open("pid").read().split()[1]) == os.getpid())
    for bad in (["./none"], ["./t.py"], ["d"], ["cat", "x"], ["./none/x"]):
        try: print(run(bad, capture_output=True).returncode)
        except OSError as e: print(type(e).__name__, e.filename)
    try: run(["true"], cwd="none")
    except OSError as e: print(type(e).__name__, e.filename)
    with open("passed", "w+") as f:
        f.write("inherited"); f.flush(); print(run([sys.executable, "-c", f"import os; print(os.pread({f.fileno()}, 99, 0)); os.lseek({f.fileno()}, 2, 0)"], pass_fds=[f.fileno()]).returncode, f.buffer.raw.tell())
    p = subprocess.Popen(["sh", "-c", "trap 'echo term >sig; exit 4' TERM; echo ready; while :; do sleep 0.05; done"], stdout=subprocess.PIPE); p.stdout.readline(); p.terminate(); print(p.wait(), open("sig").read().strip()); p.stdout.close()
    p = subprocess.Popen(["tee", "teed"], stdin=subprocess.PIPE, stdout=subprocess.PIPE); print(p.communicate(b"to both")[0], open("teed").read()); print(run(["sleep", "0"], preexec_fn=lambda: os.chdir("d"), start_new_session=True, umask=0o77).returncode)
    for method in ("fork", "spawn", "forkserver"):
        c = multiprocessing.get_context(method)
        with c.Pool(2) as pool: print(method, pool.map(work, range(5)))
        open("counter", "w").write("0"); lock = c.Lock(); ps = [c.Process(target=count, args=(lock, 20)) for _ in range(3)]; [x.start() for x in ps]; [x.join() for x in ps]; print(open("counter").read(), [x.exitcode for x in ps])
        a, b = c.Pipe(); x = c.Process(target=talk, args=(b,)); x.start(); print(a.recv()); a.send([1]); print(a.recv()); x.join()
        m = shared_memory.SharedMemory(create=True, size=10); x = c.Process(target=attach, args=(m.name,)); x.start(); x.join(); print(m.buf[0]); m.close(); m.unlink()
    with multiprocessing.Manager() as m: q = m.Queue(); q.put(os.getcwd()); print(q.get() == os.getcwd())
    with concurrent.futures.ThreadPoolExecutor(8) as e: print(sum(r[0] for r in e.map(work, range(100, 200))))
    with concurrent.futures.ProcessPoolExecutor(2) as e: print(sum(r[0] for r in e.map(work, range(100, 120))))
    async def aio():
        p = await asyncio.create_subprocess_exec("cat", "w101", stdout=subprocess.PIPE); out, _ = await p.communicate(); print(len(out), p.returncode)
        async def serve(r, w): w.write((await r.readline()).upper()); await w.drain(); w.close()
        server = await asyncio.start_unix_server(serve, "s"); r, w = await asyncio.open_unix_connection("s"); w.write(b"asyncio\n"); print(await r.read()); w.close(); server.close(); await server.wait_closed(); print(os.path.exists("s"))
    asyncio.run(aio()); pid = os.posix_spawn("/bin/sh", ["sh", "-c", "cat <&5 >&6"], os.environ, file_actions=[(os.POSIX_SPAWN_OPEN, 5, "w102", os.O_RDONLY, 0), (os.POSIX_SPAWN_OPEN, 6, "spawned", os.O_WRONLY | os.O_CREAT, 0o600)]); print(os.waitpid(pid, 0)[1], os.path.getsize("spawned"))
    r, w = os.pipe(); t = threading.Thread(target=lambda: (os.sendfile(w, os.open("w150", os.O_RDONLY), 0, 150), os.close(w))); t.start(); print(len(os.read(r, 999))); t.join(); print(len(os.listdir(f"/proc/{os.getpid()}/cwd")) == len(os.listdir()), os.readlink("/proc/self/cwd") == os.getcwd())
    if not os.fork(): os.execv(sys.executable, [sys.executable, "-c", "import os; print('executed', sorted(os.listdir('d')))"])
    os.wait(); sys.stdout.flush(); os.abort() if os.fork() == 0 else print(os.WTERMSIG(os.wait()[1]) == signal.SIGABRT)
if __name__ == "__main__": main()
END
ulimit -c 0; /usr/bin/python3 -u -W ignore t.py; ls | grep -vc '^w'
""",
    "modules": r"""
export PYTHONDONTWRITEBYTECODE=; py() { /usr/bin/python3 -B "$@"; }; mkdir -p pkg/sub ns/inner; echo 'import os; from . import other; from .sub import deep; where = os.path.basename(os.path.dirname(__file__))' >pkg/__init__.py; echo 'value = 1' >pkg/other.py; echo 'print("main", __name__, __package__)' >pkg/__main__.py
echo 'from ..other import value' >pkg/sub/deep.py; : >pkg/sub/__init__.py; echo 'x = __path__ if "__path__" in globals() else __spec__.origin[-10:]' >ns/inner/m.py; echo 'data' >pkg/data.txt
/usr/bin/python3 -c 'import pkg, ns.inner.m as m; print(pkg.where, pkg.deep.value, m.x, type(ns.__path__).__name__ if (ns := __import__("ns")) else 0)'; find . -name '*.pyc' | sort; py -m pkg; py pkg; echo 'value = 2' >pkg/other.py; touch -d 2030-01-01 pkg/other.py; /usr/bin/python3 -c 'import pkg; print(pkg.other.value)'
/usr/bin/python3 -m compileall -q -f -j 2 . && find . -name '*.pyc' | wc -l; /usr/bin/python3 -m compileall . | sort | head -3; rm pkg/other.py; mv pkg/__pycache__/other.*.pyc pkg/other.pyc; /usr/bin/python3 -c 'import pkg; print(pkg.other.__file__[-9:])'; echo 'value =' >pkg/other.py; /usr/bin/python3 -c 'import pkg' 2>&1 | tail -1; echo 'value = 3' >pkg/other.py
py -c 'import importlib, pathlib, sys; pathlib.Path("new.py").write_text("a = 1"); importlib.invalidate_caches(); import new; pathlib.Path("new.py").write_text("a = 22"); print(new.a, importlib.reload(new).a); import importlib.resources as r; print((r.files("pkg") / "data.txt").read_text().strip())'; py -c 'import zipfile; z = zipfile.PyZipFile("l.zip", "w"); z.writepy("pkg"); z.close(); import sys; sys.path.insert(0, "l.zip"); import pkg; print(pkg.__file__)'
mkdir app; echo 'print("zipapp", __file__.split("/")[-2:])' >app/__main__.py; py -m zipapp app -p '/usr/bin/env python3' && ./app.pyz && py app.pyz; py -m venv --without-pip v && v/bin/python -c 'import sys; print(sys.prefix != sys.base_prefix, sys.prefix.split("/")[-1])'; v/bin/python -m site | grep -c site-packages; (. v/bin/activate && python -c 'import sys, os; print(os.path.basename(sys.prefix))'; command -v python | sed "s,$PWD,,"); cat v/pyvenv.cfg | grep -c version
/usr/bin/python3 -m venv --copies --without-pip c && c/bin/python -c 'import sys, os; print(os.path.relpath(sys.executable), os.path.relpath(sys.prefix))'; cp -a v w; w/bin/python -c 'import sys; print(sys.prefix.split("/")[-1])'; echo "import sys; sys.marked = 1" >$(echo v/lib/python3*/site-packages)/x.pth; v/bin/python -c 'import sys; print(sys.marked)'; printf '[metadata]\n' >setup.cfg; echo 'print(1 / 0)' >err.py; py err.py 2>&1 | sed 's/".*\//"/'; echo 'import pkg.none' | py 2>&1 | tail -1
py - one two <<<'import sys; print(sys.argv)'; py <<<'print(open("setup.cfg").read())'; printf '#!/usr/bin/python3\nimport sys\nprint(sys.argv, sys.path[0].split("/")[-1])\n' >s; chmod +x s; ./s a; mkdir bin; ln -s ../s bin/s; bin/s b; (cd bin; ./s c); py -c 'import ctypes, ctypes.util; print(ctypes.CDLL("libc.so.6").getpid() > 0)'; gcc -shared -fPIC -x c -o lib.so - <<<'int f(int n) { return n + 1; }' && py -c 'import ctypes; print(ctypes.CDLL("./lib.so").f(41))'
""",
    "databases": r"""
cat >t.py <<'END'
import configparser, csv, dbm, dbm.dumb, fileinput, json, linecache, logging.handlers, mailbox, os, pickle, shelve, sqlite3, threading, zipfile, tarfile
for mode in ("delete", "wal", "truncate"):
    a = sqlite3.connect(f"{mode}.db", timeout=5, isolation_level=None, check_same_thread=False); b = sqlite3.connect(f"{mode}.db", timeout=0.1, isolation_level=None)
    print(a.execute(f"pragma journal_mode={mode}").fetchone(), a.execute("create table t (x)").rowcount); a.execute("begin immediate"); a.executemany("insert into t values (?)", ((i,) for i in range(1000)))
    print(b.execute("select count(*) from t").fetchone())
    try: b.execute("insert into t values (0)")
    except sqlite3.OperationalError as e: print(e)
    a.execute("rollback"); a.execute("begin"); a.execute("insert into t values (7)"); a.execute("commit"); print(b.execute("select x from t").fetchall()); b.execute("vacuum"); c = sqlite3.connect("copy.db"); a.backup(c); print(c.execute("select count(*) from t").fetchone(), sorted(n for n in os.listdir() if n.startswith(mode)))
    ts = [threading.Thread(target=lambda n=n: [sqlite3.connect(f"{mode}.db", timeout=20, isolation_level=None).execute("insert into t values (?)", (n,)) for _ in range(8)]) for n in range(3)]; [t.start() for t in ts]; [t.join() for t in ts]; print(b.execute("select x, count(*) from t group by x").fetchall()); blob = a.execute("create table b (x blob)").execute("insert into b values (zeroblob(100000))").lastrowid
    with a.blobopen("b", "x", blob) as o: o.seek(50000); o.write(b"blob"); o.seek(50000); print(o.read(4))
    a.close(); b.close(); c.close(); print(sorted(n for n in os.listdir() if n.startswith(mode)))
with shelve.open("shelf") as s: s["a"] = [1]; s["b"] = {"x": "y"}
with shelve.open("shelf", writeback=True) as s: s["a"].append(2); print(sorted(s.items()))
with dbm.dumb.open("dumb", "n") as d: d["k"] = "v"
print(dbm.whichdb("dumb"), sorted(n for n in os.listdir() if n.startswith("dumb")))
box = mailbox.Maildir("mail"); keys = [box.add(f"Subject: {i}\n\ntext {i}\n") for i in range(5)]; box.remove(keys[0]); print(len(box), sorted(m["subject"] for m in box), sorted(os.listdir("mail"))); m = mailbox.mbox("mbox"); m.lock(); m.add("Subject: x\n\nFrom here\n"); m.flush(); m.unlock(); print(len(m), sorted(n for n in os.listdir() if n.startswith("mbox"))); m.close()
h = logging.handlers.RotatingFileHandler("log", maxBytes=200, backupCount=3); l = logging.getLogger("x"); l.addHandler(h); [l.warning("message %d", i) for i in range(100)]; print(sorted((n, os.path.getsize(n)) for n in os.listdir() if n.startswith("log"))); w = logging.handlers.WatchedFileHandler("watched"); l.addHandler(w); l.warning("1"); os.rename("watched", "away"); l.warning("2"); print(open("watched").read(), open("away").read()); h.close(); w.close()
with open("c.csv", "w", newline="") as f: csv.writer(f).writerows([[1, "a b"], [2, 'q"']])
print(list(csv.reader(open("c.csv", newline=""))), pickle.dump([1, 2], open("p", "wb")), pickle.load(open("p", "rb")), json.dump({"a": 1}, open("j", "w")), json.load(open("j")))
with fileinput.input(["c.csv"], inplace=True, backup=".bak") as f: [print(line.upper(), end="") for line in f]
print(open("c.csv").read(), os.path.exists("c.csv.bak"), linecache.getline("c.csv", 2)); c = configparser.ConfigParser(); c["s"] = {"k": "v"}; c.write(open("i.ini", "w")); print(configparser.ConfigParser().read("i.ini"))
with zipfile.ZipFile("z.zip", "a") as z: z.write("c.csv"); z.writestr("d/x", "y" * 1000)
with zipfile.ZipFile("z.zip", "a") as z: z.write("j"); print(z.testzip(), z.namelist()); z.extractall("unz")
with tarfile.open("t.tar.gz", "w:gz") as t: t.add("unz"); t.add("mail")
with tarfile.open("t.tar.gz") as t: t.extractall("unt"); print(len(t.getmembers()), sorted(os.listdir("unt")))
END
/usr/bin/python3 -W ignore t.py
""",
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_script(same: Same, name: str) -> None:
    same(f"exec 2>&1\n{SCRIPTS[name]}\nexit 0", "/usr/bin/python3", "gcc")
