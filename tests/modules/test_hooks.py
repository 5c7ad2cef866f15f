"""What hooks of system calls may do, and what comes of mistakes."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import PYTHON, UMVM, Result, Runner

from umvm.errors import UmvmError
from umvm.syscalls.classes import CLASSES, expand
from umvm.syscalls.table import BY_NAME, Verdict

Run = Callable[..., Result]


@pytest.fixture
def module(tmp_path: Path) -> Callable[..., str]:
    """`module(text, name)`: a module's file."""

    def write(text: str, name: str = "mod") -> str:
        path = tmp_path / f"{name}.py"
        path.write_text(
            "import errno, os, threading\nfrom umvm import Reply, SyscallClass\n" + text
        )
        return str(path)

    return write


# --- what a hook may do, and what it must not -----------------------------------------------------

BROKEN = """
def umvm_start(vm, options):
    def hook(request):
        if request.string(request.args[1]) == b"/broken":
            {what}
    return [SyscallClass(("openat",), hook)]
"""


@pytest.mark.expect_log("hook .* failed, openat of process .* gets EIO")
@pytest.mark.parametrize("what", ['raise ValueError("oh")', 'return "not a reply"'])
def test_a_broken_hook_gives_eio_and_one_traceback(
    runner: Runner, module: Callable[..., str], what: str
) -> None:
    body = "cat /broken; cat /broken; cat /broken; echo goes on"
    result = runner.umvm(body, modules=[module(BROKEN.format(what=what))])
    assert result.stdout == "goes on\n"
    assert result.stderr.count("Input/output error") == 3
    assert runner.logged().count("Traceback") == 1


@pytest.mark.parametrize("number", ["ENOENT", "ENOSPC", "EOVERFLOW"])
def test_an_oserror_is_the_guests(umvm_run: Run, module: Callable[..., str], number: str) -> None:
    what = f'raise OSError(errno.{number}, "text")'
    body = "import os\ntry: os.open('/broken', 0)\nexcept OSError as e: print(e.errno)"
    result = umvm_run([*PYTHON, "-c", body], modules=[module(BROKEN.format(what=what))])
    import errno

    assert result.ok() == f"{getattr(errno, number)}\n"


BLOCKING = """
released = threading.Event()

def umvm_start(vm, options):
    def hook(request):
        if request.string(request.args[1]) == b"/blocked":
            released.wait()
            return Reply.error(errno.ETIMEDOUT)
    return [SyscallClass(("openat",), hook)]
"""


def test_a_hook_that_blocks_holds_up_one_guest(umvm_run: Run, module: Callable[..., str]) -> None:
    body = f"""
    for i in 1 2 3 4 5 6 7 8; do cat /blocked & done
    ls / >/dev/null && echo listed
    {" ".join(UMVM)} rmmod mod && echo unloaded
    cat /blocked 2>&1  # the kernel's again
    kill -9 %1 %2 %3 %4 %5 %6 %7 %8 && wait %1; echo $?
    """
    result = umvm_run(["bash", "-c", body], modules=[module(BLOCKING)])
    lines = result.stdout.splitlines()
    assert lines == ["listed", "unloaded", "cat: /blocked: No such file or directory", "137"]


def test_umvm_stop_may_release_what_blocks(umvm_run: Run, module: Callable[..., str]) -> None:
    stop = "\ndef umvm_stop(vm):\n    released.set()\n"
    body = f"cat /blocked & sleep 0.2; {' '.join(UMVM)} rmmod mod; wait"
    result = umvm_run(body, modules=[module(BLOCKING + stop)])
    assert "Connection timed out" in result.stderr


GATE = """
waiting = []
lock = threading.Lock()

def umvm_start(vm, options):
    def hook(request):
        path = request.string(request.args[1])
        if path == b"/gate/count":
            raise OSError(len(waiting) + 1000, "so many")
        if path == b"/gate/open":
            for other in waiting:
                other.answer(Reply.error(errno.EBADE))
        elif path.startswith(b"/gate/"):
            with lock:
                waiting.append(request)
            return Reply.later()
    return [SyscallClass(("openat",), hook)]
"""


def test_later_holds_no_worker(umvm_run: Run, module: Callable[..., str]) -> None:
    def body() -> tuple[int, int]:
        import errno
        import os
        import threading
        import time

        threading.stack_size(65536)

        def number(path: str) -> int:
            try:
                return os.open(path, 0)
            except OSError as error:
                return error.errno or 0

        results: list[int] = []
        threads = [
            threading.Thread(target=lambda: results.append(number("/gate/x"))) for _ in range(300)
        ]
        for thread in threads:
            thread.start()
        until = time.monotonic() + 20
        while number("/gate/count") != 1300 and time.monotonic() < until:
            time.sleep(0.01)
        waiting = len(results)
        number("/gate/open")
        for thread in threads:
            thread.join()
        return waiting, results.count(errno.EBADE)

    assert umvm_run(body, modules=[module(GATE)]).ok() == "result (0, 300)\n"


def test_a_guest_that_waits_for_later_can_be_killed(
    umvm_run: Run, module: Callable[..., str]
) -> None:
    body = "cat /gate/x & sleep 0.2; kill -9 $!; wait $!; echo $?; cat /gate/open 2>/dev/null; true"
    assert umvm_run(body, modules=[module(GATE)]).ok() == "137\n"


ORDER = """
def umvm_start(vm, options):
    def hook(request):
        if request.string(request.args[1]) == b"/who":
            fd = os.memfd_create("who")
            os.pwrite(fd, b"NAME\\n", 0)
            return Reply.fd(fd)
    return [SyscallClass(("openat",), hook)]
"""


def test_the_newest_is_asked_first_and_uncovers_the_older(
    umvm_run: Run, module: Callable[..., str]
) -> None:
    one, two = (module(ORDER.replace("NAME", name), name) for name in ("one", "two"))
    umvm = " ".join(UMVM)
    body = f"""
    cat /who; {umvm} insmod {two}; cat /who; sed -i s/two/new/ {two}; {umvm} reload {two}; cat /who
    {umvm} rmmod two; cat /who; {umvm} rmmod one; cat /who
    """
    result = umvm_run(body, modules=[one])
    assert result.stdout == "one\ntwo\nnew\none\n"
    assert "No such file" in result.stderr


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("('nonesuch',)", "unknown system call 'nonesuch'"),
        ("('getpid',)", "'getpid' is not trapped"),
        ("('%nonesuch',)", "unknown class of system calls"),
    ],
)
def test_what_cannot_be_hooked_is_refused(
    umvm_run: Run, module: Callable[..., str], names: str, said: str
) -> None:
    text = f"def umvm_start(vm, options):\n    return [SyscallClass({names}, print)]\n"
    result = umvm_run("echo never", modules=[module(text)])
    assert result.status == 1 and result.stdout == ""
    assert said in result.stderr and result.stderr.count("\n") == 1


def test_reading_and_writing_memory_of_the_guest(umvm_run: Run, module: Callable[..., str]) -> None:
    text = """
def umvm_start(vm, options):
    def hook(request):
        fd, address, size, *_ = request.args
        data = request.read(address, size)
        if data == b"ping":
            request.write(address, b"pong")
            return Reply.value(4)
        if data == b"bad":
            request.write(8, b"x")  # EFAULT
    return [SyscallClass(("write",), hook)]
"""

    def body() -> list[object]:
        import ctypes
        import os

        libc = ctypes.CDLL(None, use_errno=True)
        found: list[object] = []
        for word in (b"ping", b"bad", b"other"):
            data = ctypes.create_string_buffer(word, len(word))
            _, end = os.pipe()
            found += [libc.write(end, data, len(word)), ctypes.get_errno(), data.raw]
            ctypes.set_errno(0)
        return found

    expected = [4, 0, b"pong", -1, 14, b"bad", 5, 0, b"other"]
    assert umvm_run(body, modules=[module(text)]).ok() == f"result {expected}\n"


def test_descriptors_of_the_guest(umvm_run: Run, module: Callable[..., str]) -> None:
    text = """
def umvm_start(vm, options):
    def hook(request):
        copy = request.getfd(int(request.args[0]))
        try:
            if os.fstat(copy).st_size != 3:
                return None
            request.addfd(copy, True, 77)
        finally:
            os.close(copy)
        return Reply.value(123)
    return [SyscallClass(("lseek",), hook)]
"""

    def body() -> tuple[int, bool, int]:
        import os

        fd = os.memfd_create("x")
        os.write(fd, b"abc")
        return os.lseek(fd, 0, 0), os.path.samestat(os.fstat(fd), os.fstat(77)), os.lseek(0, 0, 1)

    assert umvm_run(body, modules=[module(text)]).ok() == "result (123, True, 0)\n"


# --- classes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASSES)
def test_classes_hold_trapped_calls_only(name: str) -> None:
    calls = expand((f"%{name}",))
    assert calls
    assert all(BY_NAME[call].verdict is Verdict.TRAPPED for call in calls)
    assert len(set(calls)) == len(calls)


def test_classes_and_names_mix() -> None:
    file, desc = expand(("%file",)), expand(("%desc",))
    assert {"openat", "execve", "chdir", "getcwd", "statx"} <= set(file)
    assert {"read", "openat", "fstat"} <= set(desc) and "read" not in file
    assert set(expand(("%net",))) == set(expand(("%network",))) >= {"socket", "connect"}
    assert {"getuid", "capget"} <= set(expand(("%creds",)))
    assert expand(("uname", "%file", "uname", "openat")) == ("uname", *file)
    with pytest.raises(UmvmError, match="is not trapped"):
        expand(("futex",))


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_classes_agree_with_strace(runner: Runner) -> None:
    """What we put in a class strace traces as that class: calls that a program makes anyway."""
    body = "import os, socket; os.stat('/'); socket.socket().close(); os.getuid(); os.getcwd()"
    for name in ("file", "desc", "network", "creds", "process"):
        log = runner.home / "strace"
        runner.run(
            ["strace", "-f", "-o", str(log), "-e", f"trace=%{name}", *PYTHON, "-c", body]
        ).ok()
        seen = set(re.findall(r"^\d+ +(\w+)\(", log.read_text(), re.MULTILINE))
        trapped = {call for call in seen if BY_NAME[call].verdict is Verdict.TRAPPED}
        assert trapped and trapped <= set(expand((f"%{name}",))), name


def test_a_hook_on_a_class(umvm_run: Run, module: Callable[..., str], tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    text = f"""
from umvm.syscalls.table import BY_NR
def umvm_start(vm, options):
    file = open({str(seen)!r}, "a", buffering=1)
    return [SyscallClass(("%creds", "uname"), lambda r: print(BY_NR[r.nr].name, file=file))]
"""
    umvm_run("id -u; uname; cat /dev/null", modules=[module(text)]).ok()
    calls = set(seen.read_text().split())
    assert {"geteuid", "uname"} <= calls and not calls & {"openat", "read"}
