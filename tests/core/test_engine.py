"""The engine with real guests: answers of all kinds, and calls run with changed arguments."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from harness import Compiler, Result, Runner

HOST = r"""
import json, os, signal, struct, sys, threading, time
from core_accel import launch
from core_accel.engine import Engine
from core_accel.request import Reply
from umvm.syscalls import bpf, table
from umvm.syscalls.kinds import KINDS

nr, seen, later = table.nr, [], []

def handler(req):
    name = table.BY_NR[req.nr].name
    seen.append(name)
    if name == "chdir":
        path = req.string(req.args[0])
        if path.startswith(b"/virtual"):
            return req.rewrite({0: b"/usr" + path[8:]})
        if path == b"/big":
            return req.rewrite({0: b"/usr" + b"/." * 900})
        if path == b"/number":
            return req.rewrite({6: nr("mkdir"), 0: b"made", 1: 0o700})
        if path == b"/value":
            return Reply.value(77)
        if path == b"/error":
            return Reply.error(95)
        if path == b"/oserror":
            raise OSError(27, "too big")
        if path == b"/broken":
            raise ValueError("a bug")
        if path == b"/later":
            def answer():
                time.sleep(0.05)
                req.answer(Reply.value(5))
            threading.Thread(target=answer).start()
            return Reply.later()
        if path == b"/dead":
            os.kill(req.tid, signal.SIGKILL)
            for _ in range(1000):
                if not req.alive():
                    break
                time.sleep(0.005)
            later.append(req.alive())
            return req.rewrite({0: b"/usr"})
        return Reply.run()
    if name == "openat" and req.string(req.args[1]).startswith(b"/given"):
        r, w = os.pipe()
        os.write(w, b"given")
        os.close(w)
        return Reply.fd(r, bool(req.args[2] & os.O_CLOEXEC))
    if name == "execve" and req.string(req.args[0]) == b"/script":
        front = [b"/bin/sh", b"-c", b'echo "$0" "$1" "$#"; pwd >&2' + b" " * int(os.environ.get("PADDING", 0)), b"front"]
        pointers, at = [], req.args[1]
        while not pointers or pointers[-1]:
            pointers.append(struct.unpack("<Q", req.read(at, 8))[0])
            at += 8
        count = len(front) + len(pointers)
        words, text, offsets = [], b"", []
        for index, word in enumerate(front):
            offsets.append(8 * index)
            words.append(8 * count + len(text))
            text += word + b"\0"
        block = struct.pack(f"<{count}Q", *words, *pointers) + text
        return req.rewrite({0: b"/bin/sh", 1: (block, offsets)})
    if name == "getcwd" and os.environ.get("MEMORY"):
        room = req.args[1]
        for attempt in (lambda: req.read(8, 4), lambda: req.write(8, b"x"), lambda: req.string(8), lambda: req.getfd(999)):
            try: later.append(repr(attempt()))
            except OSError as error: later.append(error.errno)
        later.append(len(req.peek(8, 100)))
        copy = req.getfd(1); later.append(os.readlink(f"/proc/self/fd/{copy}") == os.readlink(f"/proc/{req.tid}/fd/1")); os.close(copy)
        r, w = os.pipe(); later.append(req.addfd(r, True, 50)); os.close(r); os.close(w)
        req.write(req.args[0], b"/made/up\0")
        return Reply.value(9)
    return None

gone = threading.Event()
busy = []

def counted(req):
    busy.append(1)
    try:
        return handler(req)
    finally:
        busy.pop()

engine = Engine(KINDS, counted, lambda fd: gone.set())
engine.set_hooks([nr(name) for name in ("chdir", "execve", "openat", "getcwd")])
init = launch.Init()
argv = [os.fsencode(word) for word in sys.argv[1:]]
env = [os.fsencode(f"{k}={v}") for k, v in os.environ.items()]
sys.stdout.flush()
started = launch.spawn(bpf.program(table.ROWS), [argv[0]], argv, env, init=init)
engine.add_listener(started.listener)
error = started.go()
status = None
while True:
    what, value = init.wait()
    if what == "Z":
        break
    status = value
gone.wait(5)
for _ in range(200):
    if not busy:
        break
    time.sleep(0.02)
passed, claimed, workers = engine.counts()
print(json.dumps({"error": error, "status": status, "gone": gone.is_set(), "passed": passed, "claimed": claimed,
                  "workers": workers, "later": later}))
"""


class Ended(NamedTuple):
    """What a guest printed, and what the engine says afterwards."""

    output: str
    status: int
    later: list[object]
    result: Result


@pytest.fixture
def engine(runner: Runner) -> Callable[..., Ended]:
    """Run a command as guest of a bare engine with the handler above."""

    def run(*argv: object, **env: str) -> Ended:
        words = list(map(str, argv))
        result = runner.run([sys.executable, "-c", HOST, *words], env=env, timeout=40)
        *output, last = result.stdout.splitlines()
        told = json.loads(last)
        assert told["error"] == 0 and told["gone"], result
        text = "".join(line + "\n" for line in output)
        return Ended(text, told["status"], told["later"], result)

    return run


def python(body: str) -> list[str]:
    return ["/usr/bin/python3", "-I", "-S", "-c", f"import os, ctypes\n{body}"]


ANSWERS = r"""
libc = ctypes.CDLL(None, use_errno=True)
for path in (b"/value", b"/error", b"/oserror", b"/broken", b"/later", b"/tmp", b"/none/such"):
    ctypes.set_errno(0)
    print(path.decode(), libc.chdir(path), ctypes.get_errno())
fd = os.open("/given", os.O_RDONLY | os.O_CLOEXEC)
print(os.read(fd, 9), os.get_inheritable(fd))
fd = libc.open(b"/given", 0)
print(os.read(fd, 9), os.get_inheritable(fd))
"""


def test_answers(engine: Callable[..., Ended]) -> None:
    ended = engine(*python(ANSWERS))
    assert ended.output == (
        "/value 77 0\n/error -1 95\n/oserror -1 27\n/broken -1 5\n/later 5 0\n/tmp 0 0\n"
        "/none/such -1 2\nb'given' False\nb'given' True\n"
    )
    assert ended.status == 0
    assert ended.result.stderr.count("ValueError: a bug") == 1  # logged once


def test_memory_and_descriptors(engine: Callable[..., Ended]) -> None:
    ended = engine(*python("print(os.getcwd(), os.path.exists('/proc/self/fd/50'))"), MEMORY="1")
    assert ended.output == "/made/up True\n"
    assert ended.later[:7] == [14, 14, 14, 9, 0, True, 50], ended.result


def test_another_call(engine: Callable[..., Ended], tmp_path: Path) -> None:
    """The number too may be changed."""
    body = f"os.chdir({str(tmp_path)!r}); os.chdir('/number'); print(os.listdir('.'))"
    assert "'made'" in engine(*python(body)).output
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o700


def test_guest_that_died(engine: Callable[..., Ended]) -> None:
    ended = engine(*python("os.chdir('/dead')"))
    assert ended.status == 9
    assert ended.later == [False]


@pytest.mark.parametrize("kind", ["dynamic", "static", "musl"])
def test_changed_calls_in_a_storm_of_signals(
    engine: Callable[..., Ended], guest_binary: Compiler, kind: str
) -> None:
    guest = guest_binary("proc_rewrite", static=kind == "static", musl=kind == "musl")
    ended = engine(guest, "storm", 4, 60)
    assert (ended.output, ended.status) == ("done 1\n", 0), ended.result


def test_children_that_share_memory(engine: Callable[..., Ended], guest_binary: Compiler) -> None:
    ended = engine(guest_binary("proc_rewrite"), "vfork", 30)
    assert ended.output == "front given0 2\n" * 30 + "unmoved 1\n", ended.result
    assert ended.result.stderr == "/usr\n" * 30


@pytest.mark.parametrize("padding", [0, 600, 100_000])
@pytest.mark.parametrize("words", [1, 2, 300, 20_000])
def test_other_arguments(
    engine: Callable[..., Ended], guest_binary: Compiler, words: int, padding: int
) -> None:
    """A new array of arguments with new words before the guest's own."""
    ended = engine(guest_binary("proc_rewrite"), "exec", words, PADDING=str(padding))
    assert ended.output == f"front w0 {words}\n", ended.result


def test_big_texts(engine: Callable[..., Ended], guest_binary: Compiler) -> None:
    ended = engine(guest_binary("proc_rewrite"), "big", 100)
    assert ended.output == "big 1\n", ended.result


def test_small_stacks(engine: Callable[..., Ended], guest_binary: Compiler) -> None:
    ended = engine(guest_binary("proc_rewrite"), "stack")
    assert ended.output == "stack 0\n", ended.result


def test_many_waiting_guests(engine: Callable[..., Ended]) -> None:
    """Handlers that wait don't hold others up."""
    body = """
import threading
libc = ctypes.CDLL(None)
results = []
threads = [threading.Thread(target=lambda: results.append(libc.chdir(b"/later"))) for _ in range(100)]
[t.start() for t in threads]; [t.join() for t in threads]
print(results == [5] * 100)
"""
    assert engine(*python(body)).output == "True\n"


def test_threads_that_fork_and_execute(engine: Callable[..., Ended]) -> None:
    body = """
import subprocess, threading
out = []
def work(n):
    for i in range(5):
        out.append(subprocess.run(["/bin/pwd"], cwd="/virtual", capture_output=True).stdout)
threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
[t.start() for t in threads]; [t.join() for t in threads]
print(set(out), len(out), os.getcwd() != "/usr")
"""
    assert engine(*python(body)).output == "{b'/usr\\n'} 30 True\n"
