"""Everything that tells who a guest is agrees: /proc, sockets, signals, limits, the host name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import GUESTS, PYTHON, UMVM, Result, Runner, argv_of
from real_root import own

Run = Callable[..., Result]
ENGINES = ("notify", "agent")
ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not ROOT, reason="needs root on the host")


def umvm(*words: str) -> str:
    """A umvm command inside a VM, for a shell."""
    return " ".join((*UMVM, *words))


# --- against real root ---------------------------------------------------------------------------


@needs_root
@pytest.mark.parametrize("engine", ENGINES)
def test_sockets_tell_the_same_as_real_roots(runner: Runner, tmp_path: Path, engine: str) -> None:
    path = Path("/tmp") / f"umvm-peer-{os.getpid()}"
    argv = [*PYTHON, str(GUESTS / "cred_peers.py"), str(path)]
    native = runner.run(argv).ok()
    path.unlink()
    vm = runner.umvm(argv, modules=[own()], options=["--engine", engine]).ok()
    path.unlink()
    assert native.count("\n") == 12
    assert vm == native


@needs_root
def test_limits_as_real_root_sets_them(runner: Runner) -> None:
    argv = [*PYTHON, str(GUESTS / "cred_limits.py")]
    native = runner.run(argv).ok()
    assert native.count("\n") > 18
    assert runner.umvm(argv, modules=[own()]).ok() == native


# --- whoever runs the VM -------------------------------------------------------------------------


def test_sockets_know_the_ids_inside(umvm_run: Run, tmp_path: Path) -> None:
    argv = [*PYTHON, str(GUESTS / "cred_peers.py"), f"/tmp/umvm-peers-{os.getpid()}"]
    lines = umvm_run(argv, modules=["ident,groups="]).ok().splitlines()
    Path(argv[-1]).unlink()
    assert lines[:4] == [
        "pair (0, 0) (0, 0)",
        "server (0, 0)",
        "client True (33, 34)",
        "groups (5, 6)",
    ]
    assert "b'explicit' [(33, 34)] 0" in lines
    assert lines[-1] == "b'by itself' [(0, 0)]"


@pytest.mark.parametrize("engine", ENGINES)
def test_proc_shows_the_ids_inside(umvm_run: Run, engine: str) -> None:
    body = """
    grep -E '^(Uid|Gid|Groups|Cap|NoNew|Seccomp)' /proc/self/status
    exec sh -c 'od -A n -t d8 -w16 /proc/self/auxv | grep -E "^ +1[1234] "; stat -c "%u %g" /proc/$$ /proc/$$/status
    cd /proc/$$; cat status | grep Uid; stat -c %u . task; head -c 200 /proc/thread-self/status | grep -c Name
    cat /proc/self/uid_map | wc -l'
    """
    argv = ["setpriv", "--reuid=33", "--regid=34", "--groups=5,6", "sh", "-c", body]
    result = umvm_run(argv, modules=["ident"], options=["--engine", engine])
    lines = [line for line in result.ok().splitlines() if not line.startswith("CapBnd")]
    assert [" ".join(line.split()) for line in lines] == [
        "Uid: 33 33 33 33",
        "Gid: 34 34 34 34",
        "Groups: 5 6",
        "CapInh: 0000000000000000",
        "CapPrm: 0000000000000000",
        "CapEff: 0000000000000000",
        "CapAmb: 0000000000000000",
        "NoNewPrivs: 0",
        "Seccomp: 0",
        "Seccomp_filters: 0",
        "11 33",
        "12 33",
        "13 34",
        "14 34",
        "33 34",
        "33 34",
        "Uid: 33 33 33 33",
        "33",
        "33",
        "1",
        "1",
    ]


def test_a_process_that_changed_its_ids_belongs_to_root(umvm_run: Run) -> None:
    def body() -> list[object]:
        import ctypes
        import os

        os.setresuid(33, 33, 33)
        dumpable = ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)
        paths = ("/proc/self/", "/proc/self/status", "/proc/self/task", "/proc/self/fd")
        return [dumpable, *(os.stat(path).st_uid for path in paths)]

    assert umvm_run(body, modules=["ident"]).ok() == "result [0, 33, 0, 33, 0]\n"


def test_signals_ask_the_ids_inside(umvm_run: Run) -> None:
    def body() -> list[object]:
        import os
        import signal
        import subprocess

        def kill(pid: int, number: int = 0) -> object:
            try:
                os.kill(pid, number)
            except OSError as error:
                return error.errno
            return "sent"

        mine = subprocess.Popen(["sleep", "60"])
        other = subprocess.Popen(["sleep", "60"], user=33)
        found: list[object] = [kill(mine.pid), kill(other.pid)]
        read, write = os.pipe()
        if os.fork() == 0:
            os.setresuid(33, 33, 33)
            found = [kill(mine.pid), kill(mine.pid, 99), kill(other.pid), kill(os.getpid())]
            found.append(kill(999999))
            found.append(kill(mine.pid, signal.SIGCONT))
            found += [kill(-1, signal.SIGTERM)]
            os.write(write, repr(found).encode())
            os._exit(0)
        found.append(os.read(read, 1000).decode())
        other.wait()
        found += [other.returncode, mine.poll()]
        mine.kill()
        return [*found, mine.wait()]

    result = umvm_run(body, modules=["ident"])
    expected = ["sent", "sent", "[1, 22, 'sent', 'sent', 3, 'sent', 'sent']", -15, None, -9]
    assert result.ok() == f"result {expected}\n"


def test_tracing_asks_the_ids_inside(runner: Runner) -> None:
    def body() -> list[object]:
        import ctypes
        import errno
        import os
        import subprocess

        libc = ctypes.CDLL(None, use_errno=True)
        seize, detach = 0x4206, 17
        child = subprocess.Popen(["sleep", "60"])

        def attempt() -> object:
            if libc.ptrace(seize, child.pid, None, None) < 0:
                return errno.errorcode[ctypes.get_errno()]
            libc.ptrace(0x4207, child.pid, None, None)
            os.waitpid(child.pid, 0)
            return libc.ptrace(detach, child.pid, None, None)

        found = [attempt()]
        os.setresuid(33, 33, 0)
        found.append(attempt())
        os.seteuid(0)
        child.kill()
        child.wait()
        return found

    assert runner.umvm(body, modules=["ident"]).ok() == "result [0, 'EPERM']\n"
    if ROOT:
        assert runner.run(argv_of(body)).ok() == "result [0, 'EPERM']\n"


@pytest.mark.parametrize("engine", ENGINES)
def test_root_lowers_its_oom_score(umvm_run: Run, engine: str) -> None:
    body = """
    cat /proc/self/oom_score_adj | wc -l; echo -500 >/proc/$$/oom_score_adj
    cat /proc/$$/oom_score_adj; printf 7 >/proc/$$/task/$$/oom_score_adj; : >/proc/$$/oom_score_adj
    cat /proc/$$/oom_score_adj
    setpriv --reuid=33 sh -c 'cat /proc/$$/oom_score_adj | wc -l'
    """
    result = umvm_run(body, modules=["ident"], options=["--engine", engine])
    assert result.ok() == "1\n-500\n7\n1\n"


@pytest.mark.parametrize("modules", [["ident"], ["ident", "hostname,name=venus"]])
def test_root_names_the_machine(umvm_run: Run, modules: list[str]) -> None:
    body = """
    hostname mars && hostname && uname -n && cat /proc/sys/kernel/hostname
    setpriv --reuid=33 hostname pluto 2>/dev/null || hostname
    """
    before = os.uname().nodename
    assert umvm_run(body, modules=modules).ok() == "mars\n" * 4
    assert os.uname().nodename == before


def test_the_clock_stays_the_hosts(umvm_run: Run) -> None:
    def body() -> list[object]:
        import ctypes
        import time

        def attempt() -> object:
            try:
                time.clock_settime(time.CLOCK_REALTIME, 0)
            except OSError as error:
                return error.errno
            return None

        timex = (ctypes.c_uint * 64)()
        asked = ctypes.CDLL(None).adjtimex(timex) >= 0
        timex[0] = 1
        return [attempt(), asked, ctypes.CDLL(None).adjtimex(timex), time.time() > 1e9]

    assert umvm_run(body, modules=["ident"]).ok() == "result [1, True, -1, True]\n"
    assert umvm_run(body, modules=["ident,lenient"]).ok() == "result [None, True, 0, True]\n"


# --- commands ------------------------------------------------------------------------------------


def test_run_as_a_user(runner: Runner) -> None:
    body = "id; " + umvm("id", "--json")
    result = runner.umvm(body, options=["--user", "www-data", "--caps", "chown,-1"])
    shown, _, text = result.ok().partition("\n")
    assert shown == "uid=33(www-data) gid=33(www-data) groups=33(www-data)"
    found = json.loads(text)
    assert found["uid"] == [33, 33, 33]
    assert found["capabilities"]["effective"] == "chown"
    assert found["capabilities"]["bounding"] == "chown"
    assert found["no_new_privs"] is False
    body = f"id -u; id -G; {umvm('id')}"
    lines = runner.umvm(body, options=["--user", "0:5", "--caps", "none"]).ok().splitlines()
    assert lines[:3] == ["0", "5", "uid=0(root) gid=5(tty) groups=5(tty)"]
    assert lines[3].split() == ["effective", "none"]


def test_su_and_sudo(runner: Runner) -> None:
    body = f"""
    id -un
    {umvm("su", "-c", "'id -un; echo $HOME'")}
    {umvm("sudo", "-u", "daemon", "sh", "-c", "'id -un; echo $SUDO_USER $SUDO_UID $USER'")}
    {umvm("sudo", "-u", "daemon", "-g", "5", "id", "-gn")}
    {umvm("su", "-l", "root", "-c", "pwd")} 2>/dev/null
    {umvm("sudo", "./nosuch")}; echo $?
    {umvm("su", "nosuch")}; echo $?
    id -un
    """
    result = runner.umvm(body, options=["--user", "www-data"])
    lines = result.stdout.splitlines()
    assert lines[:5] == ["www-data", "root", "/root", "daemon", "www-data 33 daemon"]
    assert lines[5] == "tty"
    assert lines[-3:] == ["127", "2", "www-data"]
    assert result.stderr.splitlines()[-1] == "umvm: there is no user 'nosuch'"


def test_su_brings_the_identity_with_it(runner: Runner) -> None:
    """In a VM without one, somebody becomes another user and the rest stays as it is."""
    body = f"id; {umvm('su', 'www-data', '-c', 'id')}; id"
    lines = runner.umvm(body).ok().splitlines()
    native = subprocess.check_output(["id"], text=True).strip()
    assert lines == [native, "uid=33(www-data) gid=33(www-data) groups=33(www-data)", native]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["run", "--user", "nosuch", "true"], 2, "umvm: there is no user 'nosuch'\n"),
        (["run", "--user", "0:nosuch", "true"], 2, "umvm: there is no group 'nosuch'\n"),
        (["run", "--caps", "fly", "true"], 2, "umvm: --caps: there is no capability 'fly'\n"),
        (["su", "-c", "true"], 3, "umvm: this isn't inside a VM\n"),
        (["sudo", "true"], 3, "umvm: this isn't inside a VM\n"),
    ],
)
def test_bad_command_lines(runner: Runner, arguments: list[str], status: int, message: str) -> None:
    result = runner.command(*arguments)
    assert (result.stdout, result.stderr, result.status) == ("", message, status)


def test_id_on_the_host(runner: Runner) -> None:
    found = json.loads(runner.command("id", "--json").ok())
    assert found["uid"] == list(os.getresuid())
    assert found["groups"] == os.getgroups()
    assert found["vm"] is None


# --- programs ------------------------------------------------------------------------------------

ACCOUNTS = """
export PATH=$PATH:/usr/sbin:/sbin
mkdir -p root/etc root/home; cp /etc/passwd /etc/group /etc/login.defs root/etc/
: >root/etc/shadow; : >root/etc/gshadow
useradd --prefix "$PWD/root" -M -u 4444 bob && grep bob root/etc/passwd
groupadd --prefix "$PWD/root" -g 5555 crew && usermod --prefix "$PWD/root" -aG crew bob
grep crew root/etc/group; userdel --prefix "$PWD/root" bob; grep -c bob root/etc/passwd
"""
DROPS = """
setpriv --reuid 33 --regid 33 --init-groups --inh-caps +net_bind_service \
    --ambient-caps +net_bind_service --no-new-privs sh -c 'setpriv --dump | head -6; id'
capsh --keep=1 --user=www-data --inh=cap_setuid --addamb=cap_setuid -- -c \
    'grep -E "Cap(Eff|Amb)" /proc/self/status; id'
start-stop-daemon --start --chuid daemon --exec /usr/bin/id
busybox setuidgid daemon busybox id; busybox su daemon -s /bin/sh -c id; sg daemon -c 'id -g'
perl -e '$) = "5 5 6"; $> = 33; print "$< $> $( $)\\n"; $> = 0; $< = $> = 33; print "$< $>\\n"'
"""
SSHD = """
import os, socket

def child(uid, gid, groups):
    # what sshd's privilege separation does: root monitor, unprivileged child, then the user's own
    here, there = socket.socketpair()
    if os.fork() == 0:
        os.setgroups([gid]); os.setresgid(gid, gid, gid); os.setresuid(uid, uid, uid)
        for call in (os.setuid, os.seteuid, os.setgid, os.setegid):
            try:
                call(0); print("back to root", call)
            except PermissionError:
                pass
        there.send(repr((os.getresuid(), os.getresgid(), os.getgroups())).encode())
        os._exit(0)
    os.wait()
    print(here.recv(1000).decode())

child(33, 34, [])
os.initgroups("daemon", 1); os.setegid(1); os.seteuid(1)
print(os.getresuid(), os.getresgid(), os.getgroups())
os.seteuid(0); os.setegid(0); print(os.geteuid(), os.getegid())
child(1, 1, [5])
"""


@pytest.mark.parametrize("script", [ACCOUNTS, DROPS], ids=["accounts", "drops"])
def test_programs_that_change_users(runner: Runner, tmp_path: Path, script: str) -> None:
    needed = ("useradd", "capsh", "setpriv", "busybox", "start-stop-daemon", "perl")
    missing = [name for name in needed if shutil.which(name, path="/usr/bin:/usr/sbin") is None]
    if missing:
        pytest.skip(f"not installed: {missing}")
    (tmp_path / "vm").mkdir()
    vm = runner.umvm(["/bin/sh", "-c", script], modules=["ident"], cwd=tmp_path / "vm")
    if ROOT:
        (tmp_path / "native").mkdir()
        native = runner.run(["/bin/sh", "-c", script], cwd=tmp_path / "native")
        assert vm.stdout == native.stdout
    assert vm.stdout.count("\n") >= 3
    expected = "4444" if script is ACCOUNTS else "uid=33(www-data)"
    assert expected in vm.stdout


def test_a_daemon_that_separates_privileges(runner: Runner) -> None:
    vm = runner.umvm([*PYTHON, "-c", SSHD], modules=["ident"])
    assert vm.ok().splitlines() == [
        "((33, 33, 33), (34, 34, 34), [34])",
        "(0, 1, 0) (0, 1, 0) [1]",
        "0 0",
        "((1, 1, 1), (1, 1, 1), [1])",
    ]
