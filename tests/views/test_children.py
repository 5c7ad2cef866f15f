"""Views in views: `umvm run` in a VM, and unshare(CLONE_NEWNS) of guests."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from harness import UMVM, Runner, argv_of, compare, readable_by_others

RUN = " ".join([*UMVM, "run"])
CALL = " ".join(UMVM)


def test_run_in_a_vm(runner: Runner) -> None:
    """Status, signals and names are those of the command; missing programs too."""
    body = f"""
        {RUN} sh -c 'echo $UMVM_NAME; exit 7'; echo $?; {RUN} --name kid -e A=b sh -c 'echo $UMVM_NAME $A'
        {RUN} sh -c 'kill -9 $$' 2>/dev/null; echo $?; PATH=/usr/bin {RUN} no-such-program 2>&1; echo $?
        {RUN} -- {RUN} -- sh -c 'echo inner'; echo in | {RUN} cat; {RUN} -m ident true 2>&1; echo $?
        {RUN} --name top true 2>&1; {RUN} --kill-on-exit sh -c 'sleep 70 & exit 3'; echo $?
        {RUN} /etc/passwd 2>&1; echo $?; {RUN} --net null true 2>&1; {RUN} --user 5 true 2>&1; true
    """
    lines = runner.umvm(body, options=["--name", "top"]).ok().splitlines()
    assert lines[0].startswith("top.") and lines[1:3] == ["7", "kid b"]
    assert lines[3] == "137" and lines[4].endswith("command not found") and lines[5] == "127"
    assert lines[6:8] == ["inner", "in"] and "insmod" in lines[8] and lines[9] == "1"
    assert "is running" in lines[10] and lines[11] == "3" and lines[13] == "126"
    assert "umvm stack" in lines[14] and "umvm su" in lines[15] and len(lines) == 16


def test_who_is_root_may_ask_for_it(runner: Runner) -> None:
    readable_by_others(runner)
    body = (
        f"{RUN} --fakeroot id -u; setpriv --reuid=5 --clear-groups {RUN} --fakeroot id -u; echo $?"
    )
    done = runner.umvm(body, options=["--fakeroot"])
    assert done.stdout == "0\n1\n" and "umvm su" in done.stderr


def test_common_past_separate_future(runner: Runner, tmp_path: Path) -> None:
    """The child has its parent's mounts; what either changes later, the other doesn't see."""
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    (tmp_path / "a/f").write_text("bound\n")
    child = f"""
        cat b/f; {CALL} umount b; ls b; {CALL} mount -t memory none c; echo own > c/x; cat c/x
        {CALL} mounts; {CALL} ps; touch ready; while ! test -e go; do sleep 0.02; done; ls b c; touch gone
    """
    (tmp_path / "child").write_text(child)
    body = f"""
        {CALL} mount --bind a b; {RUN} sh ./child > out &
        while ! test -e ready; do sleep 0.02; done
        cat b/f; ls c; {CALL} mounts | wc -l; {CALL} mount -t memory none a; echo mine > a/y; touch go
        wait; ls a b; {CALL} mounts | wc -l
    """
    ran = runner.umvm(body, options=["-C", str(tmp_path)])
    lines = ran.ok().split()
    assert lines == ["bound", "2", "a:", "y", "b:", "f", "3"]
    text = (tmp_path / "out").read_text()
    assert text.startswith("bound\nown\n") and text.endswith("b:\n\nc:\nx\n")
    assert f"memory  none    {tmp_path}/c" in text and str(tmp_path / "b") not in text
    assert [line.split()[2] for line in text.splitlines() if line.endswith(str(tmp_path))] == [
        "sh", "python",
    ]  # fmt: skip


def test_a_view_ends_with_its_last_process(runner: Runner, tmp_path: Path) -> None:
    """Its own mounts are unmounted then, not when its first process ends."""
    log = tmp_path / "supervisor.log"
    (tmp_path / "m").mkdir()
    inner = f"{CALL} mount -t memory none m; echo x > m/f; (sleep 0.5; cat m/f > late) & exit 0"
    body = f"""
        {RUN} sh -c '{inner}'; ls m; while ! test -s late; do sleep 0.02; done
        while ! grep -q 'memory unmounted' {log}; do sleep 0.02; done; echo over
    """
    ran = runner.umvm(body, options=["-v", "-C", str(tmp_path)])
    assert ran.ok() == "over\n" and (tmp_path / "late").read_text() == "x\n"


def test_root_in_a_vm(runner: Runner, root: Path) -> None:
    body = (
        f"{RUN} --root {root} --bind /proc sh -c 'ls /d; cat /etc/only; readlink /proc/self/root'"
    )
    assert runner.umvm(body).ok() == "e\nup\nhere\n/\n"


def test_unshare(runner: Runner, tmp_path: Path) -> None:
    """A mount namespace of its own, for who is root to the guests' eyes; as on the host."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a/f").write_text("bound\n")
    script = """
        unshare -m sh -c 'mount --bind a b; cat b/f; mount -o remount,ro,bind b; echo x > b/f; ls b
        umount b; ls b; mount --bind a b'; ls b; unshare -m --propagation unchanged true; echo $?
    """
    if os.geteuid() == 0:
        vm = runner.umvm(["sh", "-c", script], options=["-C", str(tmp_path)])
        assert vm.stdout == "bound\nf\n0\n"
        native = runner.run(["unshare", "-m", "sh", "-c", script], cwd=tmp_path)
        compare(native, vm, True)
    else:
        ran = runner.umvm("unshare -m true 2>&1 || echo refused", options=["-C", str(tmp_path)])
        assert ran.ok().endswith("refused\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="the host lets only root")
def test_pivot_root(runner: Runner, tmp_path: Path) -> None:
    """In a mount namespace of its own, as container tools do it."""

    def body() -> list[object]:
        import ctypes
        import errno
        import os

        libc = ctypes.CDLL(None, use_errno=True)
        out: list[object] = []

        def call(name: str, *args: object) -> str:
            plain = [ctypes.c_ulong(a) if isinstance(a, int) else a for a in args]
            result = getattr(libc, name)(*plain)
            return errno.errorcode[ctypes.get_errno()] if result else "ok"

        out += [call("unshare", 0x20000), call("mount", None, b"/", None, (1 << 18) | 16384, None)]
        top = os.getcwd()
        os.makedirs("n/old")
        os.makedirs("other")
        with open("n/f", "w") as file:
            file.write("inner")
        for new, put in (
            (b"gone", b"n"), (b"n/f", b"n"), (b"n", b"n/old"), (b"/", b"n/old"), (b"n", b"gone"),
        ):  # fmt: skip
            out.append(libc.syscall(155, new, put) and errno.errorcode[ctypes.get_errno()])
        out.append(call("mount", b"n", b"n", None, 4096, None))
        out.append(libc.syscall(155, b"n", b"other") and errno.errorcode[ctypes.get_errno()])
        os.chdir("n")
        out.append(libc.syscall(155, b".", b"old"))
        os.chdir("/")
        out += [os.getcwd(), sorted(os.listdir("/"))]
        out += [open("/f").read(), os.path.isdir(f"/old{top}/other"), os.path.exists(top)]
        out += [call("umount2", b"/old", 2), os.listdir("/old"), os.path.isdir("/old/usr")]
        return out

    place = tmp_path / "vm"
    place.mkdir()
    vm = runner.umvm(body, options=["-C", str(place)])
    native = tmp_path / "native"
    native.mkdir()
    compare(runner.run(argv_of(body), cwd=native), vm)
    assert "inner" in vm.ok()


@pytest.mark.skipif(os.geteuid() == 0, reason="root needs no other identity")
def test_unshare_with_another_identity(runner: Runner, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a/f").write_text("bound\n")
    inner = f"{CALL} mount --bind a b; cat b/f"
    ran = runner.umvm(
        f"unshare -m sh -c '{inner}'; ls b", options=["-C", str(tmp_path)], modules=["ident"]
    )
    assert ran.ok() == "bound\n"
    assert subprocess.run(["true"], check=True).returncode == 0
