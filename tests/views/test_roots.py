"""Virtual roots: chroot(2) of guests compared with the host's, and `umvm run --root`."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from harness import Compiler, Runner, argv_of, compare, wait_until
from rootfs import install

AS_ROOT = [] if os.geteuid() == 0 else ["ident"]


def in_a_root() -> list[object]:
    """What a process sees that has changed its root, and what it had opened before."""
    import errno
    import os

    def attempt(action: object, *args: object, **more: object) -> object:
        try:
            return action(*args, **more)  # type: ignore[operator]
        except OSError as error:
            return errno.errorcode[error.errno or 0]

    def names(place: str | int) -> list[str]:
        return sorted(os.listdir(place))

    def read(path: str) -> object:
        return attempt(lambda: open(path).read())

    os.makedirs("r/etc/deep")
    os.makedirs("r/d/e")
    os.makedirs("outer/x")
    for path, text in (("r/etc/f", "inner"), ("f", "outside")):
        with open(path, "w") as file:
            file.write(text)
    os.symlink("/etc/f", "r/abs")
    os.symlink("../../../etc/f", "r/d/up")
    outer, inner = os.open("outer", os.O_RDONLY), os.open("r/d", os.O_RDONLY)
    out: list[object] = [attempt(os.chroot, p) for p in ("gone", "f", "r/etc/f", "f/x")]
    os.chroot("r")
    out += [attempt(os.getcwd), names("/"), names(".")]
    out += [read(p) for p in ("/etc/f", "/abs", "/d/up", "/f", "f", "/../../etc/../etc/f")]
    out += [names(outer), os.stat("../r/etc/f", dir_fd=outer).st_size]
    for step in ("/d", "e", "../../../..", "/etc/deep/..", "."):
        os.chdir(step)
        out.append([os.getcwd(), os.path.realpath("."), names("."), names("..")])
    for fd, up in ((inner, "../.."), (outer, "..")):
        os.fchdir(fd)
        out += [attempt(os.getcwd), names(".")]
        os.chdir(up)
        out += [attempt(os.getcwd), names(".")]
    if (pid := os.fork()) == 0:
        os.chdir("/d")
        same = [os.getcwd(), names("/"), read("/etc/f")] == ["/d", ["abs", "d", "etc"], "inner"]
        os._exit(not same)
    out.append(os.waitpid(pid, 0)[1])
    os.chroot(".")
    out.append(names("/"))
    os.chdir("/")
    os.mkdir("/new", 0o700)
    os.rename("/new", "/new2")
    os.link("/r/etc/f", "/link")
    os.symlink("/r/d", "/to")
    out += [os.getcwd(), attempt(os.rmdir, "/new2"), os.stat("/link").st_nlink, names("/to/")]
    out += [attempt(os.rename, "/", "/x"), attempt(os.rmdir, "/"), attempt(os.rename, "/r", "/r/d")]
    os.chroot("/r/d")
    return [*out, names("/"), attempt(os.getcwd), attempt(os.stat, "/etc")]


def _can_chroot() -> bool:
    return (
        os.geteuid() == 0 and subprocess.run(["chroot", "/", "true"], check=False).returncode == 0
    )


@pytest.mark.parametrize("kind", ["host", "bind", "memory"])
def test_chroot_is_the_hosts(runner: Runner, tmp_path: Path, kind: str) -> None:
    """As a user with virtual ids and as root, in a directory, a bind mount and a served mount."""
    places = [tmp_path / "native", tmp_path / "vm", tmp_path / "source"]
    for place in places:
        place.mkdir()
    options = ["-C", str(places[1])]
    if kind == "bind":
        options = ["--bind", f"{places[2]}:{places[1]}", *options]
    mounts = [f"memory:none:{places[1]}"] if kind == "memory" else []
    vm = runner.umvm(in_a_root, options=options, modules=AS_ROOT, mounts=mounts)
    assert "['abs', 'd', 'etc']" in vm.ok()
    if _can_chroot():
        compare(runner.run(argv_of(in_a_root), cwd=places[0]), vm)


def looks_in_a_root() -> list[object]:
    """What only looks at files, by absolute and relative paths, with its errors."""
    import errno
    import os

    out: list[object] = []

    def attempt(action: object, *args: object, **more: object) -> None:
        try:
            value = action(*args, **more)  # type: ignore[operator]
        except OSError as error:
            value = errno.errorcode[error.errno or 0]
        out.append(value[3:7] if isinstance(value, os.stat_result) else value)

    os.makedirs("r/d")
    with open("r/d/f", "w") as file:
        file.write("inner")
    os.symlink("/d/f", "r/l")
    os.symlink("/gone", "r/broken")
    os.mkfifo("r/p")
    at = os.open("r/d", os.O_RDONLY)
    os.chroot("r")
    for where in (None, "/d"):
        if where:
            os.chdir(where)
        for path in (
            "/l",
            "/l/",
            "/d/f",
            "/d/",
            "/d/f/x",
            "/gone/x",
            "/broken",
            "/..",
            "../l",
            "/" * 9,
        ):
            if where is None and path.startswith("."):
                continue
            for action in (os.stat, os.lstat, os.readlink, os.listxattr):
                attempt(action, path)
            attempt(os.access, path, os.W_OK)
            for flags in (0, os.O_NOFOLLOW, os.O_DIRECTORY, os.O_CREAT | os.O_EXCL, os.O_PATH):
                attempt(lambda p, f: os.path.basename(os.read(os.open(p, f), 9)), path, flags)
    attempt(os.setxattr, "/l", "user.a", b"value")
    for path in ("/l", "/d/f", "/d"):
        attempt(os.getxattr, path, "user.a")
        attempt(os.getxattr, path, "user.a", follow_symlinks=False)
    for path in ("f", "../l", "../../d/f", "gone"):
        attempt(os.stat, path, dir_fd=at)
        attempt(os.access, path, os.R_OK, dir_fd=at)
        attempt(os.readlink, path, dir_fd=at)
        attempt(lambda p: os.read(os.open(p, 0, dir_fd=at), 9), path)
    attempt(lambda: os.get_inheritable(os.open("/d/f", os.O_RDONLY)))
    attempt(lambda: os.write(os.open("/l", os.O_RDWR | os.O_TRUNC), b"new"))
    attempt(lambda: os.open("/p", os.O_WRONLY | os.O_NONBLOCK))
    attempt(os.stat, "/d/f")
    attempt(os.stat, "/" + "n" * 300)
    return out


def test_looking_is_the_hosts(runner: Runner, tmp_path: Path) -> None:
    for name in ("native", "vm"):
        (tmp_path / name).mkdir()
    options = ["-C", str(tmp_path / "vm")]
    vm = runner.umvm(looks_in_a_root, options=options, modules=AS_ROOT)
    assert "b'inner'" in vm.ok() and "b'value'" in vm.stdout
    if _can_chroot():
        compare(runner.run(argv_of(looks_in_a_root), cwd=tmp_path / "native"), vm)


def test_chroot_needs_to_be_allowed(runner: Runner, tmp_path: Path) -> None:
    def body() -> list[object]:
        import errno
        import os

        out: list[object] = []
        for path in ("gone", "/etc/passwd", "."):
            try:
                os.chroot(path)
            except OSError as error:
                out.append(errno.errorcode[error.errno or 0])
        return out

    options = ["-C", str(tmp_path)]
    ran = runner.umvm(body, options=options, modules=["ident,uid=1000,gid=1000"])
    assert ran.ok() == "result ['ENOENT', 'ENOTDIR', 'EPERM']\n"


def test_self_in_a_root(runner: Runner, root: Path) -> None:
    options = ["--root", str(root), "--bind", "/proc"]
    body = "echo $$; exec readlink /proc/self"
    own, shown = runner.umvm(["sh", "-c", body], options=options).ok().split()
    assert own == shown


def test_run_in_a_root(runner: Runner, root: Path) -> None:
    """Programs, scripts, links and /proc are those of the root; nothing of the host is there."""
    body = """
        cat /etc/hostname /abs /d/up; pwd; cd /d/e; pwd; ls ../..; script a b; cd ..; ./../bin/script
        cat /etc/passwd 2>/dev/null || echo nothing; /usr/bin/python3 2>/dev/null || echo no python
        echo new > /tmp/file; readlink /proc/self/cwd /proc/self/root /proc/self/exe
        exec 3</tmp/file; readlink /proc/self/fd/3; cat /proc/self/mounts; cat /proc/self/comm
    """
    options = ["--root", str(root), "--bind", "/proc", "--bind", "/dev/null"]
    ran = runner.umvm(["sh", "-c", body], options=options)
    lines = ran.ok().splitlines()
    assert lines[:3] == ["inner"] * 3
    top = sorted(path.name for path in root.iterdir())
    assert lines[3:5] == ["/", "/d/e"] and lines[5 : 5 + len(top)] == top
    rest = lines[5 + len(top) :]
    assert rest[:4] == ["/bin/script a b", "/d/e", "./../bin/script ", "/d"]
    cat = os.path.realpath(shutil.which("readlink") or "")
    assert rest[4:10] == ["nothing", "no python", "/d", "/", cat, "/tmp/file"]
    points = [line.split()[1] for line in rest[10:-1]]
    assert points[-3:] == ["/", "/proc", "/dev/null"] and not any(str(root) in p for p in points)
    assert rest[-1] == "cat" and (root / "tmp/file").read_text() == "new\n"


def test_binds_in_a_root(runner: Runner, root: Path, tmp_path: Path) -> None:
    """Sources are the caller's, targets the root's; missing ones appear, and leave nothing."""
    (tmp_path / "s").mkdir()
    (tmp_path / "s/f").write_text("bound\n")
    before = sorted(str(path) for path in root.rglob("*"))
    options = ["--root", str(root), "--bind", "s:/new/place", "--bind", "s:/d:ro", "--cwd", "/d"]
    options += ["--bind", "/etc/passwd", "--bind", "s/f:/etc/hostname", "--bind", "/dev/null"]
    body = """
        pwd; cat f /new/place/f /etc/hostname; ls /new; { echo x > g; } 2>/dev/null || echo refused
        cat /etc/passwd; ls ..; cd /new/place; echo made > here; cd ..; pwd; rm -r /d/f 2>&1
    """
    ran = runner.umvm(["sh", "-c", body], options=options, cwd=tmp_path)
    lines = ran.stdout.splitlines()
    assert lines[:6] == ["/d", "bound", "bound", "bound", "place", "refused"]
    assert Path("/etc/passwd").read_text() in ran.stdout
    assert lines[-2] == "/new" and "Read-only" in lines[-1] and ran.status == 1
    assert (tmp_path / "s/here").read_text() == "made\n"
    assert sorted(str(path) for path in root.rglob("*")) == before


def test_the_programs_interpreter_is_the_roots(
    runner: Runner, root: Path, tmp_path: Path, guest_binary: Compiler
) -> None:
    """One that only the root has; and none that only the host has, neither ELF nor script's."""
    program = tmp_path / "program.c"
    program.write_text('#include <stdio.h>\nint main(void) { puts("ran"); return 0; }\n')
    where = root / "odd/loader.so"
    where.parent.mkdir()
    loader = next(p for p in (root / "lib64").resolve().iterdir() if p.name.startswith("ld-"))
    shutil.copy(loader, where)
    gcc = ["gcc", str(program), "-o"]
    odd = "-Wl,--dynamic-linker=/odd/loader.so"
    subprocess.run([*gcc, str(root / "bin/odd"), odd], check=True)
    subprocess.run([*gcc, str(root / "bin/lost")], check=True)
    (root / "bin/lostscript").write_text("#!/usr/bin/env python3\n")
    (root / "bin/gone").write_text("#!/usr/bin/python3\nprint(1)\n")
    for name in ("lostscript", "gone"):
        (root / "bin" / name).chmod(0o755)
    body = "odd; { /bin/gone; } 2>/dev/null || echo $?; exec 2>&1; lostscript || echo $?"
    options = ["--root", str(root), "--bind", "/dev/null"]
    lines = runner.umvm(["sh", "-c", body], options=options).ok().splitlines()
    assert lines[:2] == ["ran", "127"] and lines[-1] == "127" and "python3" in lines[-2]
    for path in root.rglob("ld-linux*"):
        path.unlink()
    for name in ("lost", "sh"):
        ran = runner.umvm([name], options=options)
        assert ran.status in (126, 127) and "ran" not in ran.stdout
    assert runner.umvm(["odd"], options=options).ok() == "ran\n"


@pytest.mark.parametrize("engine", ["notify", "agent"])
def test_programs_of_the_host_are_not_there(runner: Runner, root: Path, engine: str) -> None:
    """With an identity, too, whose part in execve(2) comes first."""

    def body() -> object:
        import os

        program = os.path.realpath("/usr/bin/id")
        os.chroot(os.environ["R"])
        try:
            os.execv(program, ["id"])
        except OSError as error:
            return error.errno

    options = ["--engine", engine]
    ran = runner.umvm(body, env={"R": str(root)}, modules=["ident"], options=options)
    assert ran.ok() == "result 2\n"


def test_the_kernels_file_systems(runner: Runner, root: Path) -> None:
    """proc and the like, mounted in a root as its set-up scripts do; a program run by descriptor."""

    def body() -> list[object]:
        import ctypes
        import os
        import subprocess

        libc = ctypes.CDLL(None, use_errno=True)
        at = os.open(os.environ["R"] + "/bin/cat", os.O_PATH)
        os.chroot(os.environ["R"])
        os.chdir("/")
        os.mkdir("/proc")
        out: list[object] = [libc.mount(b"proc", b"/proc", b"proc", ctypes.c_ulong(0), None)]
        out += [os.readlink("/proc/self/root"), os.path.exists("/proc/self/fd/0")]
        out += [libc.umount2(b"/proc", 0), os.listdir("/proc")]
        for argv in (["cat", "/etc/only"], ["cat", "/etc/hostname"]):
            if (pid := os.fork()) == 0:
                os.execve(at, argv, {})
            out.append(os.waitpid(pid, 0)[1])
        return [*out, subprocess.run(["script", "x"], stdout=subprocess.PIPE, check=True).stdout]

    ran = runner.umvm(body, env={"R": str(root)}, modules=AS_ROOT)
    start = "here\ninner\n"
    assert ran.ok() == f"{start}result [0, '/', True, 0, [], 0, 0, b'/bin/script x\\n/\\n']\n"


def test_sockets_and_openat2(runner: Runner, root: Path) -> None:
    """Socket names are paths of the root however long its own path is; so are openat2's."""
    long = "n" * 40

    def body() -> list[object]:
        import ctypes
        import os
        import socket
        import struct

        os.chroot(os.environ["R"])
        os.chdir("/")
        name = os.environ["N"]
        out: list[object] = []
        with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
            server.bind(f"/d/{name}")
            server.listen()
            client.connect(f"/d/../d/{name}")
            out += [server.getsockname() == f"/d/{name}", client.getpeername() == f"/d/{name}"]
        libc = ctypes.CDLL(None, use_errno=True)
        at = os.open("/d", os.O_RDONLY)
        for path, resolve in (
            ("/up", 16),
            ("../etc/only", 16),
            ("../etc/only", 8),
            ("/etc/only", 0),
        ):
            how = struct.pack("<QQQ", os.O_RDONLY, 0, resolve)
            fd = libc.syscall(437, at, path.encode(), how, len(how))
            out.append(os.read(fd, 99) if fd >= 0 else ctypes.get_errno())
        return out

    ran = runner.umvm(body, env={"R": str(root), "N": long}, modules=AS_ROOT)
    assert ran.ok() == "result [True, True, 2, 2, 18, b'here\\n']\n"
    assert (root / "d" / long).is_socket()


def test_a_limit_is_no_way_out(runner: Runner, root: Path) -> None:
    """Setting the limit that holds the marks changes what is told of it, and nothing else."""
    install(root, "bash")
    body = (
        "ulimit -S -x; ulimit -S -x 7; ulimit -S -x; cat /etc/only; bash -c 'ulimit -S -x; ls /d'"
    )
    ran = runner.umvm(["bash", "-c", body], options=["--root", str(root)])
    assert ran.ok() == "unlimited\n7\nhere\n7\ne\nup\n"


def test_maps_and_exec(runner: Runner, root: Path, tmp_path: Path) -> None:
    """The names of what is mapped are paths of the root; `umvm exec` is in the root too."""
    options = ["--root", str(root), "--bind", "/proc", "--name", "boxed"]
    text = runner.umvm(["cat", "/proc/self/maps"], options=options).ok()
    names = {line.split()[5] for line in text.splitlines() if "/" in line}
    assert {"cat"} <= {Path(name).name for name in names}
    assert all(os.path.exists(f"{root}{name}") for name in names)
    waits = "while ! test -e /tmp/done; do ls / > /tmp/ready; done"
    running = runner.start_umvm(["sh", "-c", waits], options=options)
    assert wait_until((root / "tmp/ready").exists)
    ran = runner.command("exec", "boxed", "sh", "-c", "pwd; cat /etc/only")
    (root / "tmp/done").touch()
    assert ran.ok() == "/\nhere\n" and running.wait(20) == 0


def test_root_with_owners(runner: Runner, root: Path, tmp_path: Path) -> None:
    """--fakeroot in a root with a bind mount: as the host's root has it."""
    for program in ("id", "touch", "chown", "chmod", "mknod", "cp", "mv"):
        install(root, program)
    (root / "m").mkdir()
    source = tmp_path / "s"
    source.mkdir()
    script = """
        id -u; touch /f; chown 33:44 /f; stat -c '%u:%g %a' /f; chown 5:6 /m; cd /m; touch g
        chown 7:8 g; stat -c %u:%g g /m/g ../m/g .; ln -s /f l; stat -L -c %u:%g l; readlink l
        cp -p /f h; stat -c %u:%g h; mv h /d/h; stat -c %u:%g ../d/h; chmod 4755 g; stat -c %a g
        chown -R 9:9 /d; stat -c %u:%g /d/e /d/h; mknod /null c 1 3; stat -c '%F %t %T' /null
        ln g k; stat -c '%u:%g %h' k; ln g /d/g || echo apart; rm g; ls; cat /etc/only
    """
    options = ["--root", str(root), "--bind", f"{source}:/m"]
    vm = runner.umvm(["sh", "-c", f"exec 2>&1; {script}"], options=[*options, "--fakeroot"])
    lines = vm.ok().splitlines()
    assert lines[:8] == ["0", "33:44 644", "7:8", "7:8", "7:8", "5:6", "33:44", "/f"]
    assert lines[8:15] == [
        "33:44",
        "33:44",
        "4755",
        "9:9",
        "9:9",
        "character special file 1 3",
        "7:8 2",
    ]
    assert lines[-4:] == ["apart", "k", "l", "here"] and "cross-device" in lines[-5].lower()
    assert {path.name for path in source.iterdir()} == {"k", "l"}


def test_errors(runner: Runner, tmp_path: Path) -> None:
    for options, status in (
        (["--root", str(tmp_path / "gone")], 3), (["--root", "/etc/passwd"], 20),
        (["--bind", "/gone-from-here:/x"], 3), (["--bind", ":/x"], 2), (["--bind-system"], 2),
        (["--bind", "/etc:/x:nosuch"], 2),
    ):  # fmt: skip
        ran = runner.umvm(["true"], options=options)
        assert (ran.status, ran.stdout, ran.stderr.count("\n")) == (status, "", 1), ran
    assert runner.umvm(["true"], options=["--root", str(tmp_path)]).status == 127


def as_another_user() -> list[object]:
    """What a process of root's sees that has become another user, while others have another root."""
    import errno
    import os

    def attempt(action: object, *args: object) -> object:
        try:
            return action(*args)  # type: ignore[operator]
        except OSError as error:
            return errno.errorcode[error.errno or 0]

    os.makedirs("closed/d")
    os.chmod("closed", 0)
    if (pid := os.fork()) == 0:
        os.chroot(".")
        os.seteuid(65534)
        found = [attempt(os.getcwd), os.path.exists("/closed"), attempt(os.stat, "/closed/d")]
        os._exit(found != ["/", True, "EACCES"])
    out: list[object] = [os.waitpid(pid, 0)[1]]
    os.setegid(65534)
    os.seteuid(65534)
    out += [len(attempt(os.getcwd)) > 1, len(os.listdir("/etc")) > 1]  # type: ignore[arg-type]
    out += [attempt(os.stat, "closed/d"), attempt(os.mkdir, "new"), attempt(os.chdir, "closed")]
    out += [attempt(os.chroot, "closed/d"), attempt(os.chroot, "/")]
    return out


@pytest.mark.skipif(not _can_chroot(), reason="needs root")
@pytest.mark.parametrize("engine", ["auto", "notify"])
def test_another_user(runner: Runner, engine: str) -> None:
    """Whether or not the supervisor has CAP_SYS_RESOURCE, it knows the views of such processes."""
    with tempfile.TemporaryDirectory() as searchable:
        places = [Path(searchable), Path(searchable, "native"), Path(searchable, "vm")]
        for place in places:
            place.mkdir(exist_ok=True)
            place.chmod(0o755)
        native = runner.run(argv_of(as_another_user), cwd=places[1])
        options = ["-C", str(places[2]), "--engine", engine]
        compare(native, runner.umvm(as_another_user, options=options))
