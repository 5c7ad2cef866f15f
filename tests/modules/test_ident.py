"""The module ident: who the guests are, and whose files they see."""

from __future__ import annotations

import os
import random
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import GUESTS, PYTHON, UMVM, Compiler, Result, Runner
from umvm.modules import ident

from umvm.errors import UsageError

Run = Callable[..., Result]
OWN = ",".join(
    [
        "ident",
        f"uid={os.geteuid()}",
        f"gid={os.getegid()}",
        "groups=" + ":".join(map(str, os.getgroups())),
    ]
)
"""An identity that is the real one: host and VM must agree in everything."""
ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not ROOT, reason="needs root on the host")
DROP = [
    "setgroups:5,4",
    "setresgid:33,34,35",
    "setfsuid:7",
    "setfsuid:0",
    "setfsgid:8",
    "setresuid:33,0,33",
    "capset:1,3,0",
    "capset:333,333,0",
    "setreuid:-1,33",
    "setreuid:0,-1",
    "setgroups:1",
    "setregid:34,-1",
    "setregid:1,1",
    "setuid:33",
    "setuid:0",
    "setgid:1",
    "setresuid:-1,-1,-1",
    "fork:",
    "exec:",
    "setregid:35,-1",
]
KEEP = [
    "keep:2",
    "keep:1",
    "setresuid:7,7,7",
    "capset:100,300,0",
    "setgid:9",
    "exec:",
    "setgid:0",
]
"""From root to somebody else, step by step, and no way back."""


def probe(program: Path, *steps: str) -> list[str]:
    return [str(program), *steps]


# --- ids ------------------------------------------------------------------------------------------


def test_root_by_default(umvm_run: Run) -> None:
    body = "id -u; id -g; id -G; id -un; whoami; busybox id -u; echo $UID"
    result = umvm_run(["bash", "-c", body], modules=["ident"])
    assert result.ok() == "0\n0\n0\nroot\nroot\n0\n0\n"


def test_ids_as_given(umvm_run: Run) -> None:
    result = umvm_run("id -u; id -g; id -G", modules=["ident,uid=1234,gid=5,groups=7:5:6"])
    assert result.ok() == "1234\n5\n5 6 7\n"


def test_names_are_looked_up(umvm_run: Run) -> None:
    result = umvm_run("id -un; id -gn", modules=["ident,uid=daemon,gid=bin"])
    assert result.ok() == "daemon\nbin\n"
    assert ident.make({"uid": "daemon"}).first().rgid == 1
    assert ident.make({"uid": "4000000000"}).first().rgid == 4000000000
    assert ident.make({"groups": ""}).first().groups == ()


@pytest.mark.parametrize(
    "options", [{"uid": "4294967295"}, {"uid": "-1"}, {"gid": "no such group"}, {"user": "1"}]
)
def test_bad_options_are_refused(options: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=r"^ident: "):
        ident.make(options)


def test_without_the_module_nothing_changes(umvm_run: Run) -> None:
    assert umvm_run("id").ok() == subprocess.check_output(["id"], text=True)


@pytest.mark.parametrize(("static", "musl"), [(False, False), (True, False), (True, True)])
def test_steps_down_from_root(
    umvm_run: Run, guest_binary: Compiler, static: bool, musl: bool
) -> None:
    """The transcript is checked against the host by the next test."""
    expected = (GUESTS / "ident_root.txt").read_text()
    program = guest_binary("ident_probe", static=static, musl=musl)
    result = umvm_run(
        shlex.join(probe(program, *DROP)) + "; " + shlex.join(probe(program, *KEEP)),
        modules=["ident,groups="],
    )
    assert result.ok() == expected


@needs_root
def test_the_transcript_is_that_of_the_host(runner: Runner, guest_binary: Compiler) -> None:
    program = guest_binary("ident_probe")
    shown = ""
    for steps in (DROP, KEEP):
        shown += runner.run(["setpriv", "--clear-groups", *probe(program, *steps)]).ok()
    assert shown == (GUESTS / "ident_root.txt").read_text()


def random_steps(seed: int) -> list[str]:
    """Calls with ids that are likely to matter."""
    choose = random.Random(seed)
    ids = [0, 33, 34, os.geteuid(), -1]
    calls = {
        "setuid": 1, "setgid": 1, "setreuid": 2, "setregid": 2, "setresuid": 3, "setresgid": 3,
        "setfsuid": 1, "setfsgid": 1, "setgroups": 2, "capset": 3,
    }  # fmt: skip
    steps = []
    for _ in range(8):
        name = choose.choice(list(calls))
        values = [str(choose.choice(ids)) for _ in range(calls[name])]
        if name == "capset":
            values = [choose.choice(("0", "1", "10", "333")) for _ in range(3)]
        steps.append(f"{name}:{','.join(values)}")
    for step in ("fork:", "exec:", "keep:1"):
        if choose.random() < 0.4:
            steps.insert(choose.randrange(8), step)
    return steps


def test_random_calls_as_on_the_host(runner: Runner, guest_binary: Compiler) -> None:
    """As root on the host everything is allowed at first, else nothing: both must agree."""
    program = guest_binary("ident_probe", static=True)
    lines = [shlex.join(probe(program, *random_steps(seed))) for seed in range(60)]
    body = "; ".join(lines)
    vm = runner.umvm(body, modules=[OWN])
    native = runner.run(["/bin/sh", "-c", body])
    assert native.ok().count("\n") > 400
    assert vm.ok().splitlines() == native.stdout.splitlines()


def test_children_and_threads_inherit(umvm_run: Run, guest_binary: Compiler) -> None:
    program = guest_binary("ident_probe")
    steps = ["setgroups:9", "setresuid:5,0,6", "thread:", "setfsgid:3", "fork:", "setfsgid:4"]
    last = umvm_run(probe(program, *steps), modules=["ident"]).ok().splitlines()[-1]
    assert "uid 5 0 6 fs 0 gid 0 0 0 fs 4 groups 9 caps 1db" in last


def test_a_daemon_keeps_what_its_dead_parent_had(umvm_run: Run) -> None:
    """The parent changes its ids, forks, and is gone before the child makes any call we see."""

    def body() -> list[tuple[int, int, int]]:
        import os
        import signal

        found = []
        read, write = os.pipe()
        for uid in (33, 34, 35):
            if os.fork() == 0:
                os.setresuid(uid, uid, uid)
                parent = os.getpid()
                if os.fork() == 0:
                    while os.getppid() == parent:  # not trapped
                        signal.sigtimedwait([signal.SIGUSR1], 0.001)
                    os.write(write, bytes([os.getresuid()[0]]))
                    os._exit(0)
                os._exit(0)
            os.wait()
            found.append((os.read(read, 1)[0], *os.getresuid()[:2]))
        return found

    assert umvm_run(body, modules=["ident"]).ok() == "result [(33, 0, 0), (34, 0, 0), (35, 0, 0)]\n"


def test_changes_survive_exec_and_su_works(umvm_run: Run) -> None:
    set_ids = "import os; os.setgid(1); os.setuid(1); os.execvp('sh', ['sh', '-c', 'id -u; id -g'])"
    result = umvm_run([*PYTHON, "-c", set_ids], modules=["ident"])
    assert result.ok() == "1\n1\n"
    if shutil.which("setpriv"):
        body = "setpriv --reuid=7 --regid=8 --clear-groups id; setpriv --reuid=0 id -u"
        assert umvm_run(body, modules=["ident"]).ok() == "uid=7(lp) gid=8(mail) groups=8(mail)\n0\n"


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(shutil.which("go") is None, reason="go is not installed")
def test_a_go_program(umvm_run: Run, tmp_path: Path) -> None:
    program = tmp_path / "ident"
    env = {**os.environ, "HOME": str(tmp_path), "CGO_ENABLED": "0", "GOFLAGS": "-mod=mod"}
    build = ["go", "build", "-o", str(program), str(GUESTS / "ident.go")]
    subprocess.run(build, check=True, env=env, cwd=tmp_path, timeout=250)
    result = umvm_run([str(program), str(program)], modules=["ident,groups=4"])
    assert result.ok() == "0 0 0 0 [4]\n0 0\n<nil> <nil> <nil>\n7 7 7 7 [5]\n"


# --- owners ---------------------------------------------------------------------------------------


def files(runner: Runner, directory: Path, *modules: str) -> list[str]:
    """What tests/guests/ident_files.py prints on the host (no modules), or in a VM."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    (directory / "file").write_text("x")
    argv = [*PYTHON, str(GUESTS / "ident_files.py"), str(directory / "file"), str(directory)]
    done = runner.umvm(argv, modules=modules) if modules else runner.run(argv)
    return done.ok().splitlines()


def test_every_stat_call_agrees_with_the_host(runner: Runner, tmp_path: Path) -> None:
    native = files(runner, tmp_path / "d")
    assert len(native) == 45
    assert files(runner, tmp_path / "d", OWN) == native


def test_the_users_files_are_shown_as_the_guests(runner: Runner, tmp_path: Path) -> None:
    uid, gid = os.geteuid(), os.getegid()
    native = files(runner, tmp_path / "d")
    vm = files(runner, tmp_path / "d", "ident,uid=4321,gid=1234")
    mine = f"{uid} {gid}"
    assert sum(line.endswith(f": {mine}") for line in native) > 25
    expected = []
    for line in native:
        title, _, shown = line.partition(": ")
        if not shown.startswith("error"):
            u, g = map(int, shown.split())
            shown = f"{4321 if u == uid else u} {1234 if g == gid else g}"
        expected.append(f"{title}: {shown}")
    assert vm == expected


def test_tools_show_it(umvm_run: Run, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    os.symlink("f", tmp_path / "l")
    body = """
    cd "$0"
    ls -ln f | cut -d' ' -f3,4
    stat -c '%u %g %U' f; stat -c %u l; stat -Lc %u l; busybox stat -c '%u %g' f
    find . -uid 0 | sort | tr '\\n' ' '; find . ! -user root
    test -O f && test -G f && echo mine
    """
    result = umvm_run(["/bin/sh", "-c", body, str(tmp_path)], modules=["ident"])
    shown = "0 0\n0 0 root\n0\n0\n0 0\n. ./f ./l ./supervisor.log mine\n"
    assert result.ok().replace("./supervisor.log ", "") == shown.replace("./supervisor.log ", "")


def test_served_files_are_shown_as_the_guests_too(umvm_run: Run, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    body = """
    stat -c '%u %g' /mnt /mnt/f; ls -ln /mnt | tail -n 1 | cut -d' ' -f3,4
    touch /mnt/new; stat -c %u /mnt/new; stat -c %u - </mnt/new
    """
    result = umvm_run(body, modules=["ident"], mounts=[f"passthrough:{tmp_path}:/mnt"])
    assert result.ok() == "0 0\n0 0\n0 0\n0\n0\n"


def test_root_is_root_on_served_files(umvm_run: Run) -> None:
    body = """
    cd /mnt; touch a; chown 33:44 a; stat -c '%u %g' a; chmod 0 a; cat a && echo readable
    mknod null c 1 3 && stat -c '%F %t %T' null
    setpriv --reuid=33 --regid=44 --clear-groups sh -c 'echo x >a; chmod 600 a; echo y >a; cat a'
    setpriv --reuid=35 --clear-groups cat a
    """
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed")
    result = umvm_run(body, modules=["ident"], mounts=["memory:none:/mnt"])
    assert result.stdout == "33 44\nreadable\ncharacter special file 1 3\ny\n"
    assert result.stderr.count("Permission denied") == 2


# --- changing owners ------------------------------------------------------------------------------


def test_chown_to_the_owner_that_is_shown(umvm_run: Run, tmp_path: Path) -> None:
    body = """
    cd "$0"; touch f; ln -s f l; mkdir d; chmod u+s f
    chown 0:0 f && chown -h root:root l && chown 0 d && chgrp 0 d && echo done
    stat -c %a f; chown 0:0 none; chown 0 /etc/passwd && echo shown already
    """
    result = umvm_run(["/bin/sh", "-c", body, str(tmp_path)], modules=["ident"])
    lines = result.stdout.splitlines()
    assert lines == ["done", "644", "shown already"]  # chown takes S_ISUID away
    assert result.stderr.count("No such file") == 1


def test_root_changes_owners_and_the_host_does_not_see_it(umvm_run: Run, tmp_path: Path) -> None:
    body = "cd \"$0\"; touch f; chown 33:44 f && stat -c '%u %g' f; chown 0:0 f && stat -c %u f"
    argv = ["/bin/sh", "-c", body, str(tmp_path)]
    assert umvm_run(argv, modules=["ident"]).ok() == "33 44\n0\n"
    assert (tmp_path / "f").stat().st_uid == os.geteuid()
    refused = umvm_run(["/bin/sh", "-c", body, str(tmp_path)], modules=["ident,uid=1000"])
    assert refused.stdout == "" and "not permitted" in refused.stderr


def test_somebody_who_is_not_root_may_not(umvm_run: Run, tmp_path: Path) -> None:
    body = "cd \"$0\"; touch f; chown 1001 f; chown 1000 f && chgrp 77 f && stat -c '%u %g' f"
    gid = os.getegid()
    result = umvm_run(
        ["/bin/sh", "-c", body, str(tmp_path)], modules=["ident,uid=1000,gid=77,groups=77"]
    )
    assert result.stderr.count("Operation not permitted") == 1
    assert result.stdout == "1000 77\n"
    assert (tmp_path / "f").stat().st_gid == gid


def test_tar_install_and_cp(umvm_run: Run, tmp_path: Path) -> None:
    body = """
    cd "$0"; mkdir tree; echo x >tree/a; chmod 640 tree/a; ln -s a tree/l
    tar cf t.tar tree && tar tvf t.tar --numeric-owner | awk '{print $1, $2}' | sort
    mkdir out && tar xpf t.tar -C out --same-owner && stat -c '%u %a' out/tree/a
    install -o root -g root -m 755 tree/a installed && stat -c '%u %g %a' installed
    cp -a tree copy && stat -c '%u %a' copy/a && readlink copy/l
    """
    result = umvm_run(["/bin/sh", "-c", body, str(tmp_path)], modules=["ident"])
    assert result.ok().splitlines() == [
        "-rw-r----- 0/0",
        "drwxr-xr-x 0/0",
        "lrwxrwxrwx 0/0",
        "0 640",
        "0 0 755",
        "0 640",
        "a",
    ]
    assert (tmp_path / "out/tree/a").stat().st_uid == os.geteuid()


# --- access ---------------------------------------------------------------------------------------


def test_access_is_roots_for_the_users_files(umvm_run: Run, tmp_path: Path) -> None:
    for mode in (0, 0o001, 0o400):
        (tmp_path / f"{mode:o}").touch()
        os.chmod(tmp_path / f"{mode:o}", mode)

    def body() -> list[object]:
        import os

        found: list[object] = []
        for name in ("0", "1", "400", "none"):
            found.append([name, *(os.access(name, mask) for mask in (os.R_OK, os.W_OK, os.X_OK))])
        found.append(os.access("/", os.X_OK, effective_ids=True))
        return found

    expected = [["0", True, True, False], ["1", True, True, True], ["400", True, True, False]]
    expected.append(["none", False, False, False])
    result = umvm_run(body, modules=["ident"], cwd=tmp_path)
    assert result.ok() == f"result {[*expected, True]}\n"


@pytest.mark.skipif(ROOT, reason="root may do everything on the host")
def test_access_to_others_files_is_the_truth(umvm_run: Run) -> None:
    result = umvm_run(
        "test -r /etc/shadow; echo $?; test -w /etc/passwd; echo $?", modules=["ident"]
    )
    assert result.ok() == "1\n1\n"


# --- the module comes and goes --------------------------------------------------------------------


def test_the_newest_identity_wins_and_uncovers_the_older(umvm_run: Run) -> None:
    umvm = " ".join(UMVM)
    example = Path(__file__).parent / "examples" / "nobody.py"
    body = f"""
    id -u; {umvm} insmod ident uid=5; id -u; {umvm} insmod {example}; id -u
    {umvm} rmmod nobody; id -u; {umvm} rmmod ident; id -u
    """
    own = os.geteuid()
    assert umvm_run(body).ok() == f"{own}\n5\n65534\n5\n{own}\n"


def test_two_vms_do_not_mix(runner: Runner) -> None:
    for uid in (11, 12):
        assert runner.umvm("id -u", modules=[f"ident,uid={uid}"]).ok() == f"{uid}\n"
