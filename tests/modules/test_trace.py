"""The modules trace and hostname."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import PYTHON, Result, Runner
from umvm.modules import trace, uname

Run = Callable[..., Result]


def traced(umvm_run: Run, tmp_path: Path, body: object, *options: str, **keywords: object) -> str:
    """The lines of a run under the module trace, without process numbers."""
    log = tmp_path / "trace"
    umvm_run(body, modules=[",".join(["trace", *options, f"file={log}"])], **keywords).ok()
    lines = log.read_text().splitlines()
    assert all(re.match(r"\d+ \w+\(.*\) = ", line) for line in lines)
    return "".join(line.partition(" ")[2] + "\n" for line in lines)


def test_lines_of_named_calls_and_classes(umvm_run: Run, tmp_path: Path) -> None:
    argv = ["busybox", "cat", "/etc/hostname"]
    text = traced(umvm_run, tmp_path, argv, "calls=openat", "%creds", "open")
    assert 'open("/etc/hostname", O_RDONLY' in text or 'openat(AT_FDCWD, "/etc/hostname"' in text
    assert "getuid() = ?\n" in text
    assert "execve" not in text and "read(" not in text


def test_only_what_is_answered(umvm_run: Run, tmp_path: Path) -> None:
    def body() -> None:
        import os

        os.stat("/")
        fd = os.open("/mnt/a", os.O_RDWR | os.O_CREAT, 0o640)
        os.write(fd, b"x" * 5)
        try:
            os.stat("/mnt/none")
        except OSError:
            os.mkdir("/mnt/d", 0o700)

    text = traced(umvm_run, tmp_path, body, "claimed", mounts=["memory:none:/mnt"])
    lines = text.splitlines()
    assert any(re.fullmatch(r'openat\(AT_FDCWD, "/mnt/a", O_RDWR\|O_CREAT\|O_CLOEXEC, 0640\) '
                            r"= \d+", line) for line in lines)  # fmt: skip
    assert any(re.fullmatch(r"write\(\d+, 0x[0-9a-f]+, 5\) = 5", line) for line in lines)
    assert 'mkdir("/mnt/d", 0700) = 0' in lines
    assert any(
        "/mnt/none" in x and x.endswith("-1 ENOENT (No such file or directory)") for x in lines
    )
    assert not any('stat(AT_FDCWD, "/",' in line for line in lines)


def test_addresses_and_strings(umvm_run: Run, tmp_path: Path) -> None:
    def body() -> None:
        import os
        import socket

        for family, address in (
            (socket.AF_INET, ("127.0.0.1", 1)),
            (socket.AF_INET6, ("::1", 2)),
            (socket.AF_UNIX, "\0abstract"),
            (socket.AF_UNIX, "/nowhere"),
        ):
            with socket.socket(family) as sock:
                sock.connect_ex(address)
        os.path.lexists(b'/\xff"' + b"x" * 100)

    text = traced(umvm_run, tmp_path, body, "calls=connect,%file".replace(",", "\\,"))
    assert "{AF_INET, 127.0.0.1:1}" in text
    assert "{AF_INET6, [::1]:2}" in text or "AF_INET6" not in text  # a host without IPv6
    assert '{AF_UNIX, "@abstract"}' in text
    assert '{AF_UNIX, "/nowhere"}' in text
    assert '"/\\xff\\x22' + "x" * 61 + '"...' in text


def test_the_log_takes_the_lines_otherwise(runner: Runner) -> None:
    runner.umvm("uname", modules=["trace,uname"], options=["-v"]).ok()
    assert re.search(r"INFO .*trace \d+ uname\(0x[0-9a-f]+\) = \?", runner.logged())


@pytest.mark.parametrize("fstype", ["memory", None])
def test_tracing_everything_changes_nothing(
    runner: Runner, tmp_path: Path, fstype: str | None
) -> None:
    """All calls go through Python then, those on the host too."""
    body = """
    set -e
    mkdir d d/e; echo hello >d/a; ln -s a d/l; ln d/a d/h; cp -a d copy; mv copy d/e/moved
    tar --sort=name -cf - d | tar tvf - | awk '{print $1, $NF}' | sort
    find d | sort; cat d/l; readlink d/l; rm -r d/e; ls d; cd d; pwd | sed s,.*/,,
    python3 -c 'import os; print(sorted(os.listdir(".")), os.stat("h").st_nlink)'
    (exit 3) || echo $?; cat <a | wc -c; chmod 400 a; test -r a; umask 027; touch u; stat -c %a u
    """
    place = tmp_path / "w"
    place.mkdir()
    mounts = [f"{fstype}:none:{place}"] if fstype else []
    argv = ["/bin/sh", "-c", f"cd '{place}' && mkdir w && cd w && {{ {body} }}"]
    log = tmp_path / "trace"
    vm = runner.umvm(argv, modules=[f"trace,file={log}"], mounts=mounts)
    if not fstype:
        runner.run(["rm", "-r", str(place / "w")]).ok()
    native = runner.run(argv)
    assert native.status == 0
    assert (vm.stdout, vm.stderr, vm.status) == (native.stdout, native.stderr, 0)
    assert log.read_text().count("\n") > 500


@pytest.mark.parametrize("option", ["nonesuch", "calls=nonesuch", "calls=getpid", "%nonesuch"])
def test_bad_options_are_refused(umvm_run: Run, option: str) -> None:
    result = umvm_run("echo never", modules=[f"trace,{option}"])
    assert result.status != 0 and result.stdout == "" and result.stderr.count("\n") == 1


def test_flags_by_name() -> None:
    assert trace.open_flags(os.O_WRONLY | os.O_CREAT | os.O_TRUNC) == "O_WRONLY|O_CREAT|O_TRUNC"
    assert trace.open_flags(1 << 30) == "O_RDONLY|0x40000000"


# --- hostname -------------------------------------------------------------------------------------


def test_another_host_name(umvm_run: Run) -> None:
    body = "hostname; uname -n; busybox hostname; uname -r; domainname 2>/dev/null || echo far"
    result = umvm_run(body, modules=["hostname,name=mars,domain=far"])
    assert result.ok() == f"mars\nmars\nmars\n{os.uname().release}\nfar\n"


def test_the_hosts_name_by_default(umvm_run: Run) -> None:
    def body() -> object:
        import ctypes

        data = ctypes.create_string_buffer(390)
        result = ctypes.CDLL(None).uname(data)
        fields = [data.raw[at : at + 65] for at in range(0, 390, 65)]
        return result, [field.split(b"\0")[0] for field in fields]

    assert umvm_run(body, modules=["hostname"]).ok() == f"result {body()!r}\n"


def test_root_may_change_it(umvm_run: Run) -> None:
    def body() -> list[object]:
        import ctypes
        import os
        import socket

        libc = ctypes.CDLL(None, use_errno=True)
        socket.sethostname("venus")
        found: list[object] = [socket.gethostname()]
        for call, size in (
            (libc.sethostname, 65),
            (libc.setdomainname, 64),
            (libc.sethostname, -1),
        ):
            found += [call(b"d" * 64, size), ctypes.get_errno()]
        found.append(libc.sethostname(ctypes.c_void_p(8), 4))
        os.setuid(5)
        found.append(libc.sethostname(b"no", 2))
        return [*found, ctypes.get_errno(), socket.gethostname()]

    before = os.uname().nodename
    result = umvm_run(body, modules=["ident", "hostname"])
    assert result.ok() == "result ['venus', -1, 22, 0, 22, -1, 22, -1, -1, 1, 'venus']\n"
    assert os.uname().nodename == before


def test_a_long_name_is_refused(umvm_run: Run) -> None:
    result = umvm_run("echo never", modules=[f"hostname,name={'x' * 65}"])
    assert (result.status, result.stdout) == (2, "")
    with pytest.raises(Exception, match="at most 64 bytes"):
        uname.Names(None, {"name": "x" * 65})
    assert umvm_run([*PYTHON, "-c", "import os; print(len(os.uname()[1]))"],
                    modules=[f"hostname,name={'x' * 64}"]).ok() == "64\n"  # fmt: skip
