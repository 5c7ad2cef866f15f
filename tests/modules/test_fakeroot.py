"""`umvm run --fakeroot` and umvm-fakeroot: what is remembered of files, and how long."""

from __future__ import annotations

import os
import shlex
import shutil
import sqlite3
import stat
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import PYTHON, UMVM, Compiler, Result, Runner, wait_until

Run = Callable[..., Result]
FAKEROOT = (sys.executable, "-m", "umvm.fakeroot_cli")
ROOT = os.geteuid() == 0
STAT = "stat -c '%n %u %g %a %F %t:%T'"
needs_fakeroot = pytest.mark.skipif(shutil.which("fakeroot") is None, reason="no fakeroot")


@pytest.fixture
def fake(runner: Runner, tmp_path: Path) -> Run:
    """`fake(body, *options)`: shell text under umvm-fakeroot, in the test's directory."""

    def run(body: str, *options: str) -> Result:
        argv = [*FAKEROOT, *options, "--", "sh", "-ec", body]
        return runner.run(argv, cwd=tmp_path, timeout=50)

    return run


def both(runner: Runner, place: Path, body: str) -> list[str]:
    """Run the same text under fakeroot and under umvm-fakeroot: [fakeroot's output, ours]."""
    shown = []
    for number, prefix in enumerate((("fakeroot",), FAKEROOT)):
        directory = place / f"both{number}"
        directory.mkdir()
        done = runner.run([*prefix, "--", "sh", "-ec", body], cwd=directory, timeout=50)
        shown.append(done.ok())
    return shown


BODIES = {
    "owners": "touch a; chown 5:6 a; chgrp 7 a; ln -s a l; chown -h 8:9 l; S a l; chown 1 l; S a l",
    "modes": "touch a; for m in 0 1 4755 2644 1777 400; do chmod $m a; S a; done; mkdir d; chmod 2770 d; S d",
    "devices": "mknod c c 5 1; mknod b b 8 17; mkfifo p; S c b p; chown 3:4 c; chmod 640 c; S c",
    "rename": "touch a b; chown 5:6 a; chown 7:8 b; mv a c; S b c; mv c b; S b",
    "links": "touch a; chown 5:6 a; ln a b; rm a; S b; ln b a; chown 7 b; S a; stat -c %h a",
    "reuse": "for i in 1 2 3 4 5 6 7 8; do touch f; chown $i:$i f; rm f; done; touch f; S f",
    "directories": "mkdir d; chown 5:6 d; rmdir d; mkdir d; S d; mkdir -p e/f; chown -R 3:4 e; S e e/f",
    "tar": "mkdir t; touch t/a t/b; chown 5:6 t/a; mknod t/n c 1 3; tar cf x.tar --sort=name t;"
    " tar tvf x.tar --numeric-owner | awk '{print $1, $2, $6}'; mkdir o; tar xpf x.tar -C o; S o/t/*",
    "cp": "mkdir t; touch t/a; chown 5:6 t/a; chmod 4711 t/a; cp -a t u; S u/a; cp t/a v; S v",
    "install": "touch s; install -o 33 -g 44 -m 2755 s t; install -d -o 1 -g 2 d; S t d",
    "find": "touch a b; chown 5 a; find . -uid 5; find . -user 0 | sort",
    "cpio": "touch a; chown 5:6 a; echo a | cpio -o -H newc 2>/dev/null >x; mkdir o; cd o;"
    " cpio -i <../x 2>/dev/null; S a",
}  # fmt: skip


@needs_fakeroot
@pytest.mark.parametrize("name", BODIES)
def test_as_fakeroot_shows_it(runner: Runner, tmp_path: Path, name: str) -> None:
    if name == "cpio" and shutil.which("cpio") is None:
        pytest.skip("cpio is not installed")
    theirs, ours = both(runner, tmp_path, f'S() {{ {STAT} "$@"; }}; {BODIES[name]}')
    assert len(theirs) > 5
    assert ours == theirs


def test_the_host_sees_nothing_of_it(fake: Run, tmp_path: Path) -> None:
    fake("touch a; chown 5:6 a; chmod 6000 a; mknod c c 1 3; mkdir d; chmod 0 d").ok()
    for name, kind in (("a", stat.S_IFREG), ("c", stat.S_IFREG), ("d", stat.S_IFDIR)):
        st = (tmp_path / name).stat()
        assert st.st_uid == os.geteuid()
        assert stat.S_IFMT(st.st_mode) == kind
        assert st.st_mode & 0o7600 == 0o600


def test_a_number_that_is_used_again_is_another_file(runner: Runner, tmp_path: Path) -> None:
    """File systems give a number out at once, and within one tick of the clock."""

    def body() -> list[tuple[bool, int]]:
        import os

        found = []
        for remove in (os.unlink, lambda name: os.rename("other", name)):
            for _ in range(50):
                os.close(os.open("f", os.O_CREAT | os.O_WRONLY, 0o644))
                os.chown("f", 5, 6)
                old = os.stat("f")
                os.close(os.open("other", os.O_CREAT | os.O_WRONLY, 0o644))
                remove("f")
                os.close(os.open("g", os.O_CREAT | os.O_WRONLY, 0o644))
                new = os.stat("g")
                found.append((new.st_ino == old.st_ino, new.st_uid))
                for name in ("f", "g", "other"):
                    if os.path.exists(name):
                        os.unlink(name)
        return found

    text = runner.umvm(body, options=["--fakeroot"], cwd=tmp_path).ok()
    found = eval(text.removeprefix("result "))
    assert {uid for _, uid in found} == {0}


def test_a_removed_file_keeps_its_owner_while_it_is_open(fake: Run) -> None:
    body = "touch f; chown 5:6 f; exec 3<f; rm f; stat -Lc '%u %g' /proc/self/fd/3; touch f; stat -c %u f"
    assert fake(body).ok() == "5 6\n0\n"


def test_the_host_touches_files(runner: Runner, tmp_path: Path) -> None:
    """What the host changes is seen; a file that replaces another one is not taken for it."""
    body = """
    touch a b c; chown 5:6 a b c; chmod 4711 a c; echo ready; read line
    stat -c '%n %u %a' a b c d
    """
    umvm = runner.start_umvm(
        ["sh", "-c", body], options=["--fakeroot"], cwd=tmp_path, stdin=-1, stdout=-1
    )
    assert umvm.stdout is not None and umvm.stdin is not None
    assert umvm.stdout.readline() == b"ready\n"
    os.chmod(tmp_path / "a", 0o640)
    (tmp_path / "b").unlink()
    (tmp_path / "b").touch()
    (tmp_path / "c").rename(tmp_path / "d")
    (tmp_path / "c").touch()
    umvm.stdin.write(b"go\n")
    umvm.stdin.close()
    shown = umvm.stdout.read().decode().splitlines()
    assert [line.split()[:2] for line in shown] == [["a", "5"], ["b", "0"], ["c", "0"], ["d", "5"]]
    assert shown[0].split()[2] == "640" and shown[3].split()[2] == "4711"


# --- static programs, other languages, mounts -----------------------------------------------------


def test_a_static_program_is_served_too(fake: Run, tmp_path: Path, guest_binary: Compiler) -> None:
    if shutil.which("busybox") is None:
        pytest.skip("busybox is not installed")
    body = (
        "busybox touch a; busybox chown 5:6 a; busybox chmod 4711 a; busybox stat -c '%u %g %a' a"
    )
    assert fake(body).ok() == "5 6 4711\n"


def test_mounts_keep_owners_themselves(runner: Runner, tmp_path: Path) -> None:
    body = "cd /mnt; touch a; chown 5:6 a; mknod n c 1 3; mv a b; stat -c '%u %g %F' b n"
    result = runner.umvm(body, options=["--fakeroot"], mounts=["memory:none:/mnt"])
    assert result.ok() == "5 6 regular empty file\n0 0 character special file\n"


# --- saving and loading ---------------------------------------------------------------------------


@needs_fakeroot
def test_fakeroot_reads_what_we_save_and_we_what_it_saves(runner: Runner, tmp_path: Path) -> None:
    make = (
        "touch a b; chown 5:6 a; chmod 2755 a; mknod c c 5 1; ln -s a l; chown -h 7:8 l; chown 1 b"
    )
    show = f"{STAT} a b c l"
    for number, (first, second) in enumerate(
        [(FAKEROOT, ("fakeroot",)), (("fakeroot",), FAKEROOT)]
    ):
        directory = tmp_path / str(number)
        directory.mkdir()
        shown = runner.run([*first, "-s", "s", "sh", "-c", f"{make}; {show}"], cwd=directory).ok()
        again = runner.run([*second, "-i", "s", "-s", "s", "sh", "-c", show], cwd=directory).ok()
        assert again == shown and shown.count("\n") == 4
        assert runner.run([*first, "-i", "s", "sh", "-c", show], cwd=directory).ok() == shown


def test_our_own_file_keeps_attributes_too(runner: Runner, tmp_path: Path) -> None:
    body = "touch a; chown 5:6 a; setfattr -n security.capability -v 0x0100000200040000000000000000000000000000 a"
    if shutil.which("setfattr") is None:
        pytest.skip("attr is not installed")
    show = "stat -c '%u %g' a; getfattr -dm- -e hex a | grep cap"
    options = ["--fakeroot", "--save", str(tmp_path / "o.db")]
    runner.umvm(body, options=options, cwd=tmp_path).ok()
    assert (tmp_path / "o.db").read_bytes().startswith(b"SQLite format 3")
    options = ["--fakeroot", "--load", str(tmp_path / "o.db")]
    shown = runner.umvm(show, options=options, cwd=tmp_path).ok()
    assert shown.startswith("5 6\nsecurity.capability=0x01000002000400")


def test_capabilities_go_with_a_change_of_owner(fake: Run) -> None:
    if shutil.which("setfattr") is None:
        pytest.skip("attr is not installed")
    cap = "-n security.capability -v 0x0100000200040000000000000000000000000000"
    body = f"touch a; setfattr {cap} a; setfattr -n trusted.x -v 1 a; chown 5 a; getfattr -dm- a"
    shown = fake(body).ok()
    assert "trusted.x" in shown and "capability" not in shown


def pseudo_database(path: Path, file: Path) -> None:
    """As pseudo 1.9 makes it."""
    st = file.stat()
    with sqlite3.connect(path) as base:
        base.execute(
            "CREATE TABLE files (id INTEGER PRIMARY KEY, path VARCHAR, dev INTEGER, ino INTEGER,"
            " uid INTEGER, gid INTEGER, mode INTEGER, rdev INTEGER, deleting INTEGER)"
        )
        base.execute(
            "CREATE TABLE xattrs (id INTEGER PRIMARY KEY, dev INTEGER, ino INTEGER, name VARCHAR,"
            " value VARCHAR)"
        )
        row = (str(file), st.st_dev, st.st_ino, 12, 34, 0o104755, 0, 0)
        base.execute(f"INSERT INTO files VALUES (1{',?' * 8})", row)
        base.execute("INSERT INTO xattrs VALUES (1,?,?,'trusted.z','v')", (st.st_dev, st.st_ino))
    base.close()


def test_pseudos_database_is_read(runner: Runner, tmp_path: Path) -> None:
    (tmp_path / "a").touch(0o755)
    pseudo_database(tmp_path / "files.db", tmp_path / "a")
    body = "stat -c '%u %g %a' a; python3 -c 'import os; print(os.getxattr(\"a\", \"trusted.z\"))'"
    options = ["--fakeroot", "--load", str(tmp_path / "files.db")]
    assert runner.umvm(body, options=options, cwd=tmp_path).ok() == "12 34 4755\nb'v'\n"


def test_a_database_for_several_vms(runner: Runner, tmp_path: Path) -> None:
    options = ["--fakeroot", "--owners", str(tmp_path / "o.db")]
    waits = f"""
    {STAT.replace("%n ", "")} a; echo ready
    for i in $(seq 100); do test "$(stat -c %u a)" = 7 && break; sleep 0.1; done; {STAT} a b
    """
    runner.umvm("touch a b; chown 5:6 a", options=options, cwd=tmp_path).ok()
    first = runner.start_umvm(["sh", "-c", waits], options=options, cwd=tmp_path, stdout=-1)
    assert first.stdout is not None
    assert first.stdout.readline().startswith(b"5 6 ")
    first.stdout.readline()
    second = "chmod 4755 b; chown 9 b; chown 7:8 a"
    runner.umvm(second, options=options, cwd=tmp_path).ok()
    assert wait_until(lambda: rows(tmp_path / "o.db") == 2)
    lines = first.stdout.read().decode().splitlines()
    assert lines[0].startswith("a 7 8 ") and lines[1].startswith("b 9 0 ")


def rows(path: Path) -> int:
    base = sqlite3.connect(path)
    try:
        return int(base.execute("SELECT count(*) FROM owners").fetchone()[0])
    finally:
        base.close()


def test_a_killed_vm_leaves_what_it_knew(runner: Runner, tmp_path: Path) -> None:
    options = ["--fakeroot", "--owners", str(tmp_path / "o.db")]
    body = "touch a; chown 5:6 a; echo ready; sleep 60"
    vm = runner.start_umvm(["sh", "-c", body], options=options, cwd=tmp_path, stdout=-1)
    assert vm.stdout is not None and vm.stdout.readline() == b"ready\n"
    assert wait_until(lambda: rows(tmp_path / "o.db") == 1)
    vm.kill()
    vm.wait()
    shown = runner.umvm("stat -c '%u %g' a", options=options, cwd=tmp_path).ok()
    assert shown == "5 6\n"


# --- what isn't known -----------------------------------------------------------------------------


def test_unknown_files(runner: Runner, tmp_path: Path) -> None:
    (tmp_path / "old").touch()
    body = "touch new; stat -c '%n %u %g' old new"
    mine = f"{os.geteuid()} {os.getegid()}"
    for option, old in ((), "0 0"), (("--unknown-is-real",), mine):
        options = ["--fakeroot", *option]
        shown = runner.umvm(body, options=options, cwd=tmp_path).ok()
        assert shown == f"old {old}\nnew 0 0\n"
        (tmp_path / "new").unlink()


def test_new_files_belong_to_who_makes_them(runner: Runner, tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o777)
    script = """
import os
os.umask(0o27)
os.mkdir("g"); os.chown("g", -1, 44); os.chmod("g", 0o2777)
os.setgroups([]); os.setresgid(33, 33, 33); os.setresuid(1000, 1000, 0)
for top in (".", "g"):
    os.mkdir(f"{top}/d"); os.symlink("x", f"{top}/l"); os.mkfifo(f"{top}/p")
    os.close(os.open(f"{top}/f", os.O_CREAT | os.O_WRONLY, 0o4777))
    for name in "dlpf":
        st = os.lstat(f"{top}/{name}")
        print(top, name, st.st_uid, st.st_gid, oct(st.st_mode & 0o7777 if name != "l" else 0))
"""
    shown = runner.umvm([*PYTHON, "-c", script], options=["--fakeroot"], cwd=tmp_path).ok()
    assert shown.splitlines() == [
        ". d 1000 33 0o750", ". l 1000 33 0o0", ". p 1000 33 0o640", ". f 1000 33 0o4750",
        "g d 1000 44 0o2750", "g l 1000 44 0o0", "g p 1000 44 0o640", "g f 1000 44 0o4750",
    ]  # fmt: skip


def test_set_id_programs_and_file_capabilities_count(runner: Runner) -> None:
    """As root made them: who executes them has other ids, or a capability."""
    cap = "-n security.capability -v 0x0100000200040000000000000000000000000000"
    body = f"""
    cp $(command -v id) setid; cp $(command -v cat) capable; setfattr {cap} capable
    chown 5:6 setid; chmod 6755 setid
    setpriv --reuid=33 --regid=33 --clear-groups ./setid
    setpriv --reuid=33 --regid=33 --clear-groups ./capable /proc/self/status | grep CapEff
    """
    for tool in ("setpriv", "setfattr"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    with tempfile.TemporaryDirectory() as place:  # others can reach it
        os.chmod(place, 0o755)
        shown = runner.umvm(body, options=["--fakeroot"], cwd=place).ok().splitlines()
    assert "euid=5" in shown[0] and "egid=6" in shown[0]
    assert int(shown[1].split()[1], 16) == 1 << 10


# --- files of the user's that lock the user out ---------------------------------------------------


@pytest.mark.skipif(ROOT, reason="nothing locks root out")
def test_root_uses_what_locks_the_user_out(runner: Runner, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("secret\n")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "g").write_text("inner\n")
    for name in ("f", "d"):
        os.chmod(tmp_path / name, 0)
    body = "cat f d/g; stat -c '%n %a' f d; rm d/g; touch d/h; ls d"
    shown = runner.umvm(body, options=["--fakeroot"], cwd=tmp_path).ok()
    assert shown == "secret\ninner\nf 0\nd 0\nh\n"
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "fd"] == [0, 0]
    os.chmod(tmp_path / "d", 0o700)


@pytest.mark.skipif(ROOT, reason="nothing locks root out")
def test_modes_come_back_after_a_crash(runner: Runner, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("secret\n")
    os.chmod(tmp_path / "f", 0)
    vm = runner.start_umvm(
        ["sh", "-c", "cat f; sleep 60"], options=["--fakeroot"], cwd=tmp_path, stdout=-1
    )
    assert vm.stdout is not None and vm.stdout.readline() == b"secret\n"
    vm.kill()
    vm.wait()
    runner.umvm("true", options=["--fakeroot"]).ok()
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0


# --- command lines --------------------------------------------------------------------------------


def test_the_command_line_of_fakeroot(runner: Runner, tmp_path: Path) -> None:
    def run(*words: str, **keywords: object) -> Result:
        return runner.run([*FAKEROOT, *words], cwd=tmp_path, **keywords)  # type: ignore[arg-type]

    assert run("id", "-u").ok() == "0\n"
    assert run("-u", "-b", "9", "-l", "x", "--faked=y", "--", "sh", "-c", "exit 7").status == 7
    assert run("-ss", "true").status == 0 and (tmp_path / "s").exists()
    assert "umvm-fakeroot version" in run("-v").ok()
    assert "-s FILE" in run("--help").ok()
    assert run("-h").ok() == run("--help").ok()
    for bad in (["--nonsense"], ["-s"], ["-x", "true"]):
        refused = run(*bad)
        assert refused.status == 2 and refused.stderr.count("\n") == 1
    missing = run("-i", "none", "true")
    assert missing.status != 0 and "none" in missing.stderr and missing.stderr.count("\n") == 1
    assert run("/none").status == 127
    assert run(env={"SHELL": "/bin/sh"}, input="id -u\n").ok() == "0\n"
    nested = run("true", env={"FAKEROOTKEY": "1"})
    assert nested.status == 2 and "FAKEROOTKEY" in nested.stderr
    assert runner.command("fakeroot", "--", "id", "-u").ok() == "0\n"


def test_options_of_run(runner: Runner, tmp_path: Path) -> None:
    refused = runner.umvm("true", options=["--save", "x"])
    assert refused.status == 2 and "--save needs --fakeroot" in refused.stderr
    (tmp_path / "junk").write_text("something else\n")
    junk = runner.umvm("true", options=["--fakeroot", "--load", str(tmp_path / "junk")])
    assert junk.status != 0 and "junk" in junk.stderr
    (tmp_path / "s").write_text("dev=1,ino=2,mode=100644,uid=0,gid=0,nlink=1,rdev=0\nbad\n")
    bad = runner.umvm("true", options=["--fakeroot", "--load", str(tmp_path / "s")])
    assert bad.status != 0 and "line 2" in bad.stderr
    nowhere = runner.umvm("true", options=["--fakeroot", "--save", str(tmp_path / "no" / "s")])
    assert nowhere.status != 0 and nowhere.stderr.count("\n") == 1


# --- packages -------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="no dpkg-deb")
@needs_fakeroot
def test_a_package_is_the_same_to_the_last_byte(runner: Runner, tmp_path: Path) -> None:
    body = """
    mkdir -p p/DEBIAN p/usr/bin p/var/games p/etc
    printf 'Package: p\\nVersion: 1\\nArchitecture: all\\nMaintainer: m <m@x>\\nDescription: d\\n' >p/DEBIAN/control
    printf '#!/bin/sh\\n' >p/usr/bin/tool; chmod 4755 p/usr/bin/tool
    echo 1 >p/var/games/scores; chown 0:60 p/var/games p/var/games/scores; chmod 2775 p/var/games
    mknod p/etc/null c 1 3; ln -s tool p/usr/bin/link; find p -exec touch -hd @1000000000 {} +
    chmod -R go-w p/DEBIAN; dpkg-deb --build p p.deb >/dev/null
    """
    packages = []
    for number, prefix in enumerate((("fakeroot",), FAKEROOT)):
        place = tmp_path / str(number)
        place.mkdir()
        env = {"SOURCE_DATE_EPOCH": "1000000000"}
        runner.run([*prefix, "sh", "-ec", body], cwd=place, env=env).ok()
        packages.append((place / "p.deb").read_bytes())
    assert packages[0] == packages[1]
    shown = runner.run(["dpkg-deb", "-c", str(tmp_path / "1" / "p.deb")]).ok()
    assert "-rwsr-xr-x root/root" in shown and "crw-r--r-- root/root" in shown


RULES = """#!/usr/bin/make -f
clean build build-arch build-indep:
binary: binary-arch binary-indep
binary-arch:
binary-indep:
\trm -rf debian/tmp debian/files
\tinstall -d -o root -g root debian/tmp/DEBIAN debian/tmp/usr/bin
\tinstall -d -o 0 -g 60 -m 2775 debian/tmp/var/games
\tinstall -o 0 -g 60 -m 2755 debian/rules debian/tmp/usr/bin/tool
\tdpkg-gencontrol
\tfind debian/tmp -exec touch -hd @1000000000 {} +
\tdpkg-deb --build debian/tmp ..
"""


@pytest.mark.skipif(shutil.which("dpkg-buildpackage") is None, reason="no dpkg-buildpackage")
@needs_fakeroot
def test_dpkg_buildpackage_takes_it_for_fakeroot(runner: Runner, tmp_path: Path) -> None:
    if runner.run(["perl", "-MDpkg", "-e1"]).status != 0:
        pytest.skip("no Perl modules of dpkg")
    command = shutil.which("umvm-fakeroot", path=str(Path(sys.executable).parent))
    built = []
    for number, gain in enumerate(("fakeroot", command)):
        source = tmp_path / str(number) / "p"
        (source / "debian" / "source").mkdir(parents=True)
        files = {
            "control": "Source: p\nMaintainer: m <m@x>\nRules-Requires-Root: binary-targets\n"
            "Standards-Version: 4\n\nPackage: p\nArchitecture: all\nDescription: d\n",
            "changelog": "p (1) unstable; urgency=low\n\n  * p\n\n"
            " -- m <m@x>  Sun, 09 Sep 2001 01:46:40 +0000\n",
            "rules": RULES,
            "source/format": "3.0 (native)\n",
        }
        for name, text in files.items():
            (source / "debian" / name).write_text(text)
        os.chmod(source / "debian" / "rules", 0o755)
        argv = ["dpkg-buildpackage", "-us", "-uc", "-b", "-d", f"-r{gain}"]
        runner.run(argv, cwd=source, timeout=50).ok()
        built.append((source.parent / "p_1_all.deb").read_bytes())
    assert built[0] == built[1]
    listed = runner.run(["dpkg-deb", "-c", str(tmp_path / "1" / "p_1_all.deb")]).ok()
    assert "drwxrwsr-x root/games" in listed and "-rwxr-sr-x root/games" in listed


@pytest.mark.skipif(shutil.which("rsync") is None, reason="no rsync")
def test_rsync_keeps_owners(fake: Run) -> None:
    body = "mkdir a; touch a/f a/g; chown 5:6 a/f; chmod 2711 a/g; rsync -a a/ b/; stat -c '%u %g %a' b/f b/g"
    assert fake(body).ok() == "5 6 644\n0 0 2711\n"


def test_the_installed_command(runner: Runner) -> None:
    script = shutil.which("umvm-fakeroot", path=str(Path(sys.executable).parent))
    assert script is not None
    assert runner.run([script, *shlex.split("-- id -u")]).ok() == "0\n"
    assert UMVM[0] == sys.executable
