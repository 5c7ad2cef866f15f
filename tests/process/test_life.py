"""The life of guests: exit statuses, orphans, signals, ends of all kinds, and what stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import UMVM, Result, Runner, marked_processes, wait_until

MEMORY = "memory:none:{}"


@pytest.mark.parametrize("status", [0, 1, 42, 255])
def test_exit_status(umvm_run: Callable[..., Result], status: int) -> None:
    assert umvm_run(f"exit {status}").status == status


@pytest.mark.parametrize("name", ["TERM", "KILL", "SEGV", "HUP"])
def test_a_signal_is_128_and_its_number(umvm_run: Callable[..., Result], name: str) -> None:
    assert umvm_run(f"kill -{name} $$").status == 128 + getattr(signal, f"SIG{name}")


def test_missing_and_unusable_programs(umvm_run: Callable[..., Result], tmp_path: Path) -> None:
    missing = umvm_run(["no-such-program-here"])
    assert (missing.status, missing.stderr.count("\n")) == (127, 1)
    (tmp_path / "plain").write_text("echo hi\n")
    refused = umvm_run([str(tmp_path / "plain")])
    assert (refused.status, refused.stderr.count("\n")) == (126, 1)


def test_input_output_and_environment(umvm_run: Callable[..., Result]) -> None:
    result = umvm_run('cat; echo "$GREETING" >&2', input="through\n", env={"GREETING": "hello"})
    assert (result.stdout, result.stderr, result.status) == ("through\n", "hello\n", 0)


def test_guests_are_told_where_they_are(umvm_run: Callable[..., Result]) -> None:
    result = umvm_run('echo "$UMVM_NAME"; test -S "$UMVM_SOCKET"', options=["--name", "told"])
    assert (result.stdout, result.status) == ("told\n", 0)


def test_the_vm_waits_for_orphans(umvm_run: Callable[..., Result]) -> None:
    started = time.monotonic()
    result = umvm_run("(sleep 0.7; echo later) & exit 5")
    assert (result.stdout, result.status) == ("later\n", 5)
    assert time.monotonic() - started > 0.6


def test_kill_on_exit_ends_orphans(umvm_run: Callable[..., Result]) -> None:
    result = umvm_run(
        "setsid sleep 100 & (sleep 90 &) ; exit 3", options=["--kill-on-exit"], timeout=20
    )
    assert result.status == 3


def test_orphans_go_on_in_the_view(umvm_run: Callable[..., Result], tmp_path: Path) -> None:
    body = "cd $0; (sleep 0.2; echo served > later; cat later) & exit 0"
    result = umvm_run(["sh", "-c", body, str(tmp_path)], mounts=[MEMORY.format(tmp_path)])
    assert (result.stdout, result.status) == ("served\n", 0)
    assert not list(tmp_path.glob("later"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT])
def test_signals_sent_to_umvm_reach_the_guest(runner: Runner, number: signal.Signals) -> None:
    body = f"trap 'echo got; exit 9' {number.name[3:]}; echo ready; while :; do sleep 0.05; done"
    process = runner.start_umvm(body, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(number)
    assert process.stdout.read() == b"got\n"
    assert process.wait(10) == 9


def test_ignored_signals_stay_ignored(runner: Runner) -> None:
    argv = ["nohup", *UMVM, "run", "--", "sh", "-c", "kill -HUP $$; echo alive"]
    assert runner.run(argv).stdout == "alive\n"
    plain = runner.run([*UMVM, "run", "--", "sh", "-c", "kill -PIPE $$; echo alive"])
    assert plain.status == 128 + signal.SIGPIPE


def test_a_killed_supervisor_takes_the_guests_along(runner: Runner, tmp_path: Path) -> None:
    body = "setsid sleep 300 & (sleep 301 &); echo ready; exec sleep 302"
    process = runner.start_umvm(body, stdout=subprocess.PIPE, mounts=[MEMORY.format(tmp_path)])
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.kill()
    assert process.wait(10) == -signal.SIGKILL
    assert wait_until(lambda: not marked_processes(runner.marker)), marked_processes(runner.marker)


def test_umvm_kill_ends_everything(runner: Runner) -> None:
    process = runner.start_umvm(
        "setsid sleep 300 & echo ready; trap '' TERM; sleep 300; sleep 300",
        options=["--name", "victim"], stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    assert runner.command("kill", "victim").status == 0
    assert process.wait(15) == 128 + signal.SIGKILL


def test_exec_in_a_running_vm(runner: Runner, tmp_path: Path) -> None:
    process = runner.start_umvm(
        ["sh", "-c", "echo from-main > $0/file; echo ready; read line; exit 4", str(tmp_path)],
        options=["--name", "host1"], mounts=[MEMORY.format(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None and process.stdin is not None
    assert process.stdout.readline() == b"ready\n"
    seen = runner.command("exec", "host1", "sh", "-c", f"cat {tmp_path}/file; exit 6")
    assert (seen.stdout, seen.status) == ("from-main\n", 6)
    assert runner.command("exec", "host1", "no-such-program").status == 127
    assert runner.command("exec", "no-such-vm", "true").status != 0
    process.stdin.write(b"\n")
    process.stdin.close()
    assert process.wait(10) == 4


def test_two_thousand_forks_and_two_hundred_at_once(
    umvm_run: Callable[..., Result], tmp_path: Path
) -> None:
    body = r"""
import os, sys
os.chdir(sys.argv[1])
def child(n):
    with open(f"f{n}", "w") as f:
        f.write(str(n))
    os._exit(0 if open(f"f{n}").read() == str(n) else 1)
bad = 0
for n in range(2000):
    pid = os.fork()
    if pid == 0:
        os._exit(0) if n % 10 else child(n)
    bad += os.waitpid(pid, 0)[1] != 0
gate_r, gate_w = os.pipe()
pids = []
for n in range(200):
    pid = os.fork()
    if pid == 0:
        os.close(gate_w)
        os.read(gate_r, 1)
        child(10000 + n)
    pids.append(pid)
os.close(gate_w)
bad += sum(os.waitpid(pid, 0)[1] != 0 for pid in pids)
print(bad, len(os.listdir(".")))
"""
    result = umvm_run(
        [sys.executable, "-c", body, str(tmp_path)], mounts=[MEMORY.format(tmp_path)], timeout=55
    )
    assert result.stdout == "0 400\n", result


def test_threads_and_exec_from_a_thread(umvm_run: Callable[..., Result], tmp_path: Path) -> None:
    body = """
import os, sys, threading
os.chdir(sys.argv[1])
def work(n):
    for i in range(50):
        with open(f"t{n}", "a") as f: f.write("x")
threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
[t.start() for t in threads]; [t.join() for t in threads]
print(sorted(os.path.getsize(f) for f in os.listdir(".")), flush=True)
threading.Thread(target=lambda: os.execv("/bin/echo", ["echo", "from a thread"])).start()
threading.Event().wait(10)
"""
    result = umvm_run([sys.executable, "-c", body, str(tmp_path)], mounts=[MEMORY.format(tmp_path)])
    assert result.stdout == f"{[50] * 8}\nfrom a thread\n", result


def test_vfork_with_a_directory_of_its_own(umvm_run: Callable[..., Result], tmp_path: Path) -> None:
    body = """
import os, subprocess, sys
os.chdir(sys.argv[1]); os.mkdir("inner")
for _ in range(20):
    out = subprocess.run(["pwd"], cwd="inner", capture_output=True, text=True).stdout
    assert out == sys.argv[1] + "/inner\\n", out
    assert os.getcwd() == sys.argv[1]
print("ok")
"""
    result = umvm_run([sys.executable, "-c", body, str(tmp_path)], mounts=[MEMORY.format(tmp_path)])
    assert result.stdout == "ok\n", result


def test_descriptors_are_not_inherited_from_the_supervisor(
    umvm_run: Callable[..., Result],
) -> None:
    result = umvm_run("ls /proc/self/fd | wc -l")
    native = subprocess.run(["sh", "-c", "ls /proc/self/fd | wc -l"], capture_output=True,
                            text=True, check=True, stdin=subprocess.DEVNULL)  # fmt: skip
    assert result.stdout == native.stdout


def test_limits_of_descriptors_are_the_callers(umvm_run: Callable[..., Result]) -> None:
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert umvm_run("ulimit -n").stdout == f"{soft}\n"


def test_refused_namespaces(umvm_run: Callable[..., Result]) -> None:
    body = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
print(libc.unshare(0x10000000), os.strerror(ctypes.get_errno()))
print(libc.unshare(0x00020000), os.strerror(ctypes.get_errno()))
print(libc.unshare(0x400))
args = (ctypes.c_uint64 * 8)(0x10000000, 0, 0, 0, 17)
for call in ((56, 0x10000011, 0, 0, 0, 0), (435, args, 64)):
    child = libc.syscall(*call)
    if child == 0:
        os._exit(0)
    print(child, os.strerror(ctypes.get_errno()))
"""
    result = umvm_run([sys.executable, "-c", body])
    view = "-1" if os.geteuid() else "0"  # a view of its own is for who may mount
    refused = "-1 Operation not permitted\n"
    assert result.stdout == f"{refused}{view} Operation not permitted\n0\n{refused * 2}"


def test_hidden_memory_is_no_way_around(umvm_run: Callable[..., Result], tmp_path: Path) -> None:
    body = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
print(libc.prctl(4, 0, 0, 0, 0))
open(sys.argv[1] + "/f", "w").write("x")
print(os.listdir(sys.argv[1]))
"""
    place = tmp_path / "m"
    place.mkdir()
    result = umvm_run([sys.executable, "-c", body, str(place)], mounts=[MEMORY.format(place)])
    assert result.stdout == "0\n['f']\n", result
    assert os.listdir(place) == []
