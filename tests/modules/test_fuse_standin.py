"""FUSE programs and classes in a VM, unmodified: what they serve behaves as a host directory."""

from __future__ import annotations

import errno
import os
import shlex
import stat
import sys
from pathlib import Path

import pytest
from harness import GUESTS, UMVM, Result, Runner, compare

PYTHON = f"{shlex.quote(sys.executable)} -W ignore"
PRELUDE = f"""
    umount() {{ {shlex.join([*UMVM, "umount"])} "$@"; }}
    is_mounted() {{ [ "$(stat -c %d "$m" 2>&1)" != "$(stat -c %d "$m/.." 2>&1)" ]; }}
    until_mounted() {{ until is_mounted; do sleep 0.02; done; }}
    serve() {{ it=$1; shift; {PYTHON} {GUESTS}/$it "$@" & server=$!; }}
"""
"""Shell functions; `m` is the mount point. `serve PROGRAM ARGUMENT…` starts a program."""

FILES = r"""
    mkdir -p a/b && echo hello > a/f && cp a/f a/b/g && ln -s f a/l && mv a/b/g a/h
    cat a/h a/l
    head -c 300000 /dev/zero | tr '\0' x > big && cksum big
    tar cf t.tar a && mkdir x && tar xf t.tar -C x && (cd x && find . | sort)
    chmod 600 a/f && stat -c '%n %a %F' a a/f a/l a/b && stat -c '%n %s' a/f a/l big
    printf more >> a/f && cat a/f && echo
    truncate -s 5 big && od -c big && truncate -s 9 big && od -c big
    touch -d @1000000000 big && stat -c '%X %Y' big
    mkdir x 2>&1; rmdir x 2>&1; rmdir none 2>&1; cat none 2>&1; cat a 2>&1; mv big/ none 2>&1
    exec 3<> a/h && rm a/h && echo changed >&3 && cat /proc/self/fd/3 | head -c 7 && exec 3>&-
    mv a x/moved && ls x/moved && rm -r x && ls -A && rm big t.tar && ls -A | wc -l
"""
"""What people do with files; it leaves the directory empty."""

KEPT = r"""
    mkdir -p a/b && echo one > a/one && ln a/one a/b/two && ln -s ../one a/b/link && chmod 640 a/one
    stat -c '%h' a/one && [ a/one -ef a/b/two ] && echo same
    cp -r a copy && tar cf t.tar copy && rm -r copy && tar xf t.tar && mv t.tar a/b
    touch -d @1234567890 copy/one && find . | sort
"""

EXTENDED = """
import os
with open("attributed", "w"): pass
os.setxattr("attributed", "user.name", b"value")
print(os.listxattr("attributed"), os.getxattr("attributed", "user.name"))
os.removexattr("attributed", "user.name")
try: os.getxattr("attributed", "user.name")
except OSError as error: print(error.errno)
os.remove("attributed")
"""


@pytest.fixture
def point(tmp_path: Path) -> Path:
    """The directory to mount on, which is on tmpfs if pytest's is."""
    (tmp_path / "m").mkdir()
    return tmp_path / "m"


def in_vm(runner: Runner, point: Path, script: str, **keywords: object) -> Result:
    """Run shell text with PRELUDE's functions in a new VM."""
    return runner.umvm(f"m={point}\n{PRELUDE}\n{script}", **keywords)  # type: ignore[arg-type]


def with_program(runner: Runner, point: Path, arguments: str, body: str) -> Result:
    """Run `body` in what a program serves, then unmount; its status is the program's.

    `arguments` are the program's name and arguments, with `$m` for the mount point.
    """
    script = (
        f"serve {arguments}\n until_mounted\n (cd $m && {{ {body}\n}})\n umount $m; wait $server"
    )
    return in_vm(runner, point, script)


def with_class(runner: Runner, point: Path, name: str, options: str, body: str) -> Result:
    """Run `body` in a class that the VM mounts itself."""
    spec = f"fusepy:{GUESTS / name}:{point}:{options}"
    return runner.umvm(f"cd {point} && {{ {body}\n}}", mounts=[spec])


def on_host(runner: Runner, directory: Path, body: str) -> Result:
    directory.mkdir()
    return runner.run(["/bin/sh", "-c", f"cd {directory} && {{ {body}\n}}"])


def tree(directory: Path) -> dict[str, object]:
    """What a directory holds: type, mode, content or target, modification time of files."""
    found: dict[str, object] = {}
    for path in sorted(directory.rglob("*")):
        status = path.lstat()
        what: object = sorted(os.listdir(path)) if path.is_dir() else status.st_nlink
        if path.is_symlink():
            what = os.readlink(path)
        elif path.name == "one":
            what = path.read_bytes(), path.parent.name == "copy" and status.st_mtime
        found[str(path.relative_to(directory))] = oct(status.st_mode), what
    return found


# --- as a host directory ----------------------------------------------------------------------


@pytest.mark.parametrize("how", ["program", "class"])
def test_files_in_memory(runner: Runner, point: Path, tmp_path: Path, how: str) -> None:
    native = on_host(runner, tmp_path / "host", FILES)
    if how == "class":
        vm = with_class(runner, point, "fuse_memory.py", "", FILES)
    else:
        vm = with_program(runner, point, "fuse_memory.py $m foreground", FILES)
        vm = vm._replace(stdout=vm.stdout.replace("unmounted\n", ""))
    compare(native, vm)


@pytest.mark.parametrize("how", ["program", "class"])
def test_a_loopback_does_to_its_root_what_is_done_to_it(
    runner: Runner, point: Path, tmp_path: Path, how: str
) -> None:
    body = FILES + KEPT + f"{sys.executable} -c {shlex.quote(EXTENDED)}"
    native = on_host(runner, tmp_path / "host", body)
    root = tmp_path / "root"
    root.mkdir()
    if how == "class":
        vm = with_class(runner, point, "fuse_loopback.py", f"root={root},use_ino", body)
    else:
        vm = with_program(runner, point, f"fuse_loopback.py {root} $m use_ino", body)
    compare(native, vm)
    assert tree(root) == tree(tmp_path / "host")
    assert not os.listdir(point), "the mount is the VM's alone"


def test_many_processes_at_once(runner: Runner, point: Path) -> None:
    body = """
        for i in 1 2 3 4 5 6; do
            (for j in 1 2 3 4 5; do mkdir d$i.$j; echo $i.$j > d$i.$j/f; cat d$i.$j/f | cat; done) &
            all="$all $!"
        done
        wait $all; find . -type f | wc -l
    """  # `| cat`: copy_file_range to one file by several processes loses some natively
    done = with_program(runner, point, "fuse_memory.py $m foreground", body)
    lines = done.ok().split()
    assert sorted(lines[:30]) == sorted(f"{i}.{j}" for i in range(1, 7) for j in range(1, 6))
    assert lines[30:] == ["30", "unmounted"]


# --- each dialect -----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["program", "class"])
def test_the_context_is_the_guest_that_asks(runner: Runner, point: Path, how: str) -> None:
    body = f"{sys.executable} -c 'import os; print(os.getpid(), open(\"pid\").read())'; cat uid gid"
    if how == "class":
        done = with_class(runner, point, "fuse_context.py", "ro", body)
    else:
        done = with_program(runner, point, "fuse_context.py $m", body)
    mine, seen, uid, gid = done.ok().split()
    assert mine == seen
    assert (uid, gid) == (str(os.geteuid()), str(os.getegid()))


@pytest.mark.parametrize("how", ["program", "class"])
def test_a_program_for_mfusepy(runner: Runner, point: Path, how: str) -> None:
    body = """
        stat -c %i . && echo hello > f && stat -c '%i %a %s' f && mv f g && cat g
        exec 3<> g && rm g && cat <&3 && exec 3>&- && ls
    """
    if how == "class":
        done = with_class(runner, point, "fuse_mfusepy.py", "", body)
    else:
        done = with_program(runner, point, "fuse_mfusepy.py $m", body)
    assert done.ok().split("\n") == ["31", "100 644 6", "hello", "hello", ""]


@pytest.mark.parametrize("kind", ["resumed", "restarted"])
def test_a_large_directory_in_batches(runner: Runner, point: Path, kind: str) -> None:
    done = with_program(runner, point, f"fuse_offsets.py {kind} $m", "ls | sort -u | wc -l")
    assert done.ok() == "1000\n"


def test_ioctl(runner: Runner, point: Path) -> None:
    code = """
import fcntl, os, struct
fd = os.open("counter", os.O_RDWR)
print(struct.unpack("<I", fcntl.ioctl(fd, 3 << 30 | 4 << 16 | 0x4D01, struct.pack("<I", 41))))
try: fcntl.ioctl(fd, 0x4D02)
except OSError as error: print(error.errno)
"""
    body = f"{sys.executable} -c {shlex.quote(code)}"
    done = with_program(runner, point, "fuse_ioctl.py $m", body)
    assert done.ok() == f"(42,)\n{errno.ENOTTY}\n"


def test_raw_file_information(runner: Runner, point: Path) -> None:
    body = "echo hello > f && cat f && printf more >> f && cat f && ls"
    done = with_program(runner, point, "fuse_raw_fi.py $m", body)
    assert done.ok() == "hello\nhello\nmoref\n"


# --- life of a program ------------------------------------------------------------------------


def test_a_program_goes_into_the_background_once_it_is_mounted(
    runner: Runner, point: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    script = f"""
        FUSE_TEST_LOG={log} {PYTHON} {GUESTS}/fuse_memory.py $m && is_mounted && echo up
        echo x > $m/f && cat $m/f && umount $m
        until [ -s {log} ]; do sleep 0.02; done
    """
    done = in_vm(runner, point, script)
    assert done.ok() == "up\nx\n", "what it prints later goes to /dev/null"
    assert log.read_text() == "destroy /\n"


@pytest.mark.parametrize("signal", ["INT", "TERM", "HUP"])
@pytest.mark.parametrize("threads", ["", "nothreads"])
def test_a_signal_unmounts_in_good_order(
    runner: Runner, point: Path, tmp_path: Path, signal: str, threads: str
) -> None:
    log = tmp_path / "log"
    script = f"""
        export FUSE_TEST_LOG={log}
        serve fuse_memory.py $m foreground {threads}
        until_mounted; kill -{signal} $server; wait $server; echo $?
        is_mounted || echo gone
    """
    assert in_vm(runner, point, script).ok() == "unmounted\n0\ngone\n"
    assert log.read_text() == "destroy /\n"


def test_a_program_that_dies_leaves_a_mount_that_answers_enotconn(
    runner: Runner, point: Path
) -> None:
    script = """
        serve fuse_memory.py $m foreground
        until_mounted; kill -KILL $server; wait $server
        cat $m/f 2>&1; umount $m && echo unmounted; is_mounted || echo gone
    """
    message = os.strerror(errno.ENOTCONN)
    done = in_vm(runner, point, script)
    assert done.stdout == f"cat: {point}/f: {message}\nunmounted\ngone\n", done.stderr


def test_with_auto_unmount_the_mount_goes_with_the_program(runner: Runner, point: Path) -> None:
    script = """
        serve fuse_memory.py $m foreground auto_unmount
        until_mounted; kill -KILL $server; wait $server
        while grep -q " $m " /proc/mounts; do sleep 0.02; done; echo gone
    """
    assert in_vm(runner, point, script).stdout == "gone\n"


@pytest.mark.parametrize("threads", ["", "nothreads"])
def test_fuse_exit_and_an_exit_end_the_program(runner: Runner, point: Path, threads: str) -> None:
    code = "import os, sys; os.setxattr(sys.argv[1], sys.argv[2], b'x')"
    script = f"""
        for how in exit crash; do
            serve fuse_memory.py $m foreground {threads} > $m.out
            until_mounted
            {sys.executable} -c {shlex.quote(code)} $m user.$how 2>/dev/null; echo $?
            wait $server; echo "server $?"
            is_mounted || echo gone; cat $m.out
        done
    """
    done = in_vm(runner, point, script)
    assert done.ok().split("\n") == [
        "0", "server 0", "gone", "unmounted",
        "1", "server 7", "gone", "",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("$m nonsense", "fuse: unknown option nonsense; known are "),
        ("$m uid=me foreground", "fuse: bad value of option uid: 'me'"),
        ("$m/none foreground", "fuse: bad mount point `"),
        (f"{GUESTS / 'fuse_memory.py'} foreground", "fuse: "),  # a file, for a directory
        (f"{GUESTS / 'fuse_memory.py'}", "fuse: "),
    ],
)
def test_what_cannot_be_mounted_is_a_runtime_error(
    runner: Runner, point: Path, arguments: str, complaint: str
) -> None:
    done = in_vm(runner, point, f"serve fuse_memory.py {arguments}; wait $server")
    assert done.status == 1
    assert done.stderr.startswith(complaint)
    assert done.stderr.endswith("RuntimeError: 1\n")


# --- options ----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["program", "class"])
def test_read_only(runner: Runner, point: Path, how: str) -> None:
    body = "echo x > f; mkdir d; ls"
    if how == "class":
        done = with_class(runner, point, "fuse_memory.py", "ro,count=2", body)
        assert done.stdout == "file0\nfile1\n"
    else:
        done = with_program(runner, point, "fuse_memory.py $m foreground ro", body)
    assert done.stderr.count(os.strerror(errno.EROFS)) == 2


def test_permissions_are_the_file_systems_own_affair_unless_asked_for(
    runner: Runner, point: Path
) -> None:
    body = "chmod 0 greeting; cat greeting"
    free = with_class(runner, point, "fuse_memory.py", "greeting=hello", body)
    assert free.ok() == "hello"
    if os.geteuid():
        checked = with_class(
            runner, point, "fuse_memory.py", "greeting=hello,default_permissions", body
        )
        assert os.strerror(errno.EACCES) in checked.stderr


def test_shown_owners_and_modes(runner: Runner, point: Path) -> None:
    options = "greeting=hello,uid=12,gid=34,umask=027"
    done = with_class(runner, point, "fuse_memory.py", options, "stat -c '%u %g %a' . greeting")
    assert done.ok() == "12 34 750\n12 34 750\n"


def test_a_class_mounted_from_inside(runner: Runner, point: Path) -> None:
    mount = shlex.join([*UMVM, "mount", "-t", "fusepy"])
    script = f"""
        cd {GUESTS}
        {mount} fuse_memory.py:Memory $m -o greeting=hi,nothreads && cat $m/greeting && echo
        grep " $m " /proc/mounts | cut -d' ' -f3
        umount $m; {mount} fuse_memory.py:Memory $m -o wrong=1 || {mount} fuse_memory.py:None $m
    """
    done = in_vm(runner, point, script)
    assert done.stdout == "hi\nfuse.fusepy\n"
    assert "unknown option wrong" in done.stderr
    assert "has no 'None'" in done.stderr


@pytest.mark.parametrize(
    ("options", "shown"),
    [("", "Memory fuse rw"), ("fsname=mine subtype=sub ro", "mine fuse.sub ro")],
)
def test_how_it_is_listed(runner: Runner, point: Path, options: str, shown: str) -> None:
    script = f"""
        serve fuse_memory.py $m foreground {options} > /dev/null
        until_mounted; grep " $m " /proc/mounts | cut -d, -f1 | cut -d' ' -f1,3-4
        umount $m; wait $server; grep " $m " /proc/mounts || echo gone
    """
    assert in_vm(runner, point, script).stdout == f"{shown}\ngone\n"


def test_a_mapped_file(runner: Runner, point: Path) -> None:
    code = """
import mmap, os
with open("f", "w+b") as file:
    file.write(b"x" * 10000)
    file.flush()
    with mmap.mmap(file.fileno(), 0) as area:
        area[5000:5005] = b"hello"
        area.flush()
with open("f", "rb") as file:
    print(file.read().index(b"hello"), os.fstat(file.fileno()).st_mode & 0o170000)
"""
    body = f"{sys.executable} -c {shlex.quote(code)}"
    done = with_program(runner, point, "fuse_memory.py $m foreground", body)
    assert done.ok() == f"5000 {stat.S_IFREG}\nunmounted\n"
