"""Programs of all kinds through the loader: natively and in a VM with agent, cold and warm."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from agent_fixtures import InAgent
from harness import Runner

C = """#include <stdio.h>
int main(int c, char **v) { printf("%d %s\\n", c, c ? v[0] : "none"); return 7; }
"""
GO = """package main
import ("fmt"; "os"; "os/exec")
func main() {
    path, _ := os.Executable()
    out, err := exec.Command("/bin/echo", "child").Output()
    fmt.Println(path, len(os.Args), string(out), err)
}
"""
SCRIPTS = """
printf '#!/bin/echo one two\\n' > s1; printf '#!%s/s1 more\\n' "$PWD" > s2
printf '#!nowhere\\n' > s3
printf 'echo plain $0 $1\\n' > s4; printf '#! /bin/sh\\necho $0 $#; exit 3' > s5; printf 'junk' > s6
printf '#!/bin/sh\\n' > s7; chmod +x s1 s2 s3 s4 s5 s6
./s1 a b; ./s2 c; ./s3; ./s4 x; ./s5 1 2; echo $?; ./s6; ./s7; echo $?; ./; ./none; cd /; $OLDPWD/s1
"""
NAMES = """
(exec -a other sh -c 'echo $0; tr "\\\\0" _ < /proc/$$/cmdline; cat /proc/$$/comm')
sh -c 'readlink /proc/$$/exe; :'
env -i /bin/sh -c 'echo ${PATH+set} $0'; cd /usr/bin; ./env echo relative; ls -d /proc/self/exe
python3 -c 'import sys, os; print(os.readlink("/proc/%d/exe" % os.getppid()))'
"""
DEBUGGERS = """
gdb -q -batch -ex 'break getuid' -ex run -ex bt -ex kill --args {cases} red_zone >out 2>&1
grep -c 'Breakpoint 1' out; grep -c 'red_zone ()' out
strace -f -e trace=openat -o out sh -c 'cat /etc/hostname >/dev/null'; grep -c /etc/hostname out
"""


def compare(runner: Runner, in_agent: InAgent, text: str, tmp_path: Path) -> None:
    """Cold, and again when what was run is patched."""
    place = tmp_path / "place"
    place.mkdir()
    body = f"cd {place} || exit; exec 2>&1; {text}"
    native = runner.run(["/bin/bash", "-c", body + "\n:"])
    for _ in range(2):
        assert in_agent(["/bin/bash", "-c", body + "\nsleep 0.6"]).stdout == native.stdout


@pytest.mark.parametrize("text", [SCRIPTS, NAMES], ids=["scripts", "names"])
def test_executing(runner: Runner, in_agent: InAgent, tmp_path: Path, text: str) -> None:
    compare(runner, in_agent, text, tmp_path)


@pytest.mark.parametrize(
    "flags",
    [
        "",
        "-no-pie",
        "-static",
        "-static-pie",
        "-z execstack",
        "-Wl,-z,max-page-size=0x200000",
        "-Wl,-z,noseparate-code",
    ],
)
def test_compiled(runner: Runner, in_agent: InAgent, tmp_path: Path, flags: str) -> None:
    (tmp_path / "p.c").write_text(C)
    program = tmp_path / "p"
    subprocess.run(f"cc -o {program} {tmp_path}/p.c {flags}", shell=True, check=True, timeout=60)
    compare(runner, in_agent, f"{program} a b; echo $?", tmp_path)


@pytest.mark.parametrize("flags", ["", "-static"])
def test_musl(runner: Runner, in_agent: InAgent, tmp_path: Path, flags: str) -> None:
    if shutil.which("musl-gcc") is None:
        pytest.skip("musl-gcc is not installed")
    (tmp_path / "p.c").write_text(C)
    program = tmp_path / "p"
    subprocess.run(
        f"musl-gcc -o {program} {tmp_path}/p.c {flags}", shell=True, check=True, timeout=60
    )
    compare(runner, in_agent, f"{program} a b; echo $?", tmp_path)


def test_go(runner: Runner, in_agent: InAgent, tmp_path: Path) -> None:
    if shutil.which("go") is None:
        pytest.skip("Go is not installed")
    (tmp_path / "p.go").write_text(GO)
    env = runner.environ(
        {"CGO_ENABLED": "0", "GOCACHE": str(tmp_path / "go"), "GOFLAGS": "-mod=mod"}
    )
    program = tmp_path / "p"
    subprocess.run(
        ["go", "build", "-o", program, tmp_path / "p.go"], check=True, env=env, timeout=110
    )
    compare(runner, in_agent, f"{program} a b; echo $?", tmp_path)


test_go = pytest.mark.timeout(150)(test_go)


@pytest.mark.parametrize(
    "command",
    [
        "busybox sh -c 'echo $0; ls -d /usr'",
        'perl -e \'print -s "/etc/passwd", "\\n"; print `echo sub`\'',
        'node -e \'console.log(require("fs").existsSync("/etc/passwd"))\'',
        "java -version 2>&1 | head -1",
        'python3 -c \'import subprocess as s; print(s.check_output(["pwd"], cwd="/usr"))\'',
        "make --version | head -1",
        "git --version; git init -q r && cd r && git status",
    ],
    ids=lambda text: text.split()[0],
)
def test_interpreters(runner: Runner, in_agent: InAgent, tmp_path: Path, command: str) -> None:
    name = command.split()[0]
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    compare(runner, in_agent, command, tmp_path)


def test_served_programs(in_agent: InAgent, tmp_path: Path) -> None:
    """Programs, scripts and a working directory on a mount, with agent."""
    point = tmp_path / "m"
    point.mkdir()
    body = f"""
    cd {point} && cp /bin/cat copied && sleep 0.3 && printf '#!{point}/copied' > s &&
    chmod +x s && sleep 0.3 && ./copied s && echo && ./s && mkdir d && cd d && pwd &&
    echo text > f && cat f ../d/f {point}/d/f &&
    ln -s {point}/d/f {tmp_path}/link.$$ && cat {tmp_path}/link.$$
    python3 -c 'import os; print(os.getcwd(), os.stat("f").st_size, os.path.exists("{point}/none"))'
    """
    shebang = f"#!{point}/copied"
    expected = f"{shebang}\n{shebang}{point}/d\n" + "text\n" * 4 + f"{point}/d 5 False\n"
    for _ in range(2):
        assert in_agent(body, mounts=(f"memory:none:{point}",)).stdout == expected


def test_debuggers(
    runner: Runner, in_agent: InAgent, tmp_path: Path, cases: Path, warm: Callable[..., None]
) -> None:
    if shutil.which("gdb") is None or shutil.which("strace") is None:
        pytest.skip("gdb and strace are not installed")
    warm("agent_cases")
    compare(runner, in_agent, DEBUGGERS.format(cases=cases), tmp_path)


def test_links_into_a_mount_are_seen_at_once(in_agent: InAgent, tmp_path: Path) -> None:
    """What the agent remembers of paths is void when a link comes to a name."""
    point, host = tmp_path / "m", tmp_path / "h"
    point.mkdir()
    (host / "dir").mkdir(parents=True)
    (host / "dir/f").write_text("host\n")

    def body() -> object:
        import os
        import sys

        m, h = os.environ["M"], os.environ["H"]
        os.mkdir(m + "/dir")
        with open(m + "/dir/f", "w") as file:
            file.write("mount\n")
        seen = []

        def read(path: str) -> None:
            try:
                with open(path) as file:
                    seen.append(file.read().strip())
            except OSError as error:
                seen.append(error.strerror or "")

        for _ in range(3):
            read(h + "/dir/f")
        os.rename(h + "/dir", h + "/old")
        os.symlink(m + "/dir", h + "/dir")
        read(h + "/dir/f")
        os.chdir(h)
        read("dir/f")
        read("old/f")
        os.unlink("dir")
        read("dir/f")
        os.rename("old", "dir")
        read("dir/f")
        os.symlink(m + "/dir/f", "link")
        read("link")
        os.chdir("dir")
        read("f")
        os.chdir(m + "/dir")
        read("f")
        fd = os.open(h + "/dir", os.O_RDONLY)
        seen.append(str(os.stat("f", dir_fd=fd).st_size))
        sys.stdout.flush()
        return seen

    env = {"M": str(point), "H": str(host)}
    expected = [
        "host", "host", "host", "mount", "mount", "host", "No such file or directory", "host",
        "mount",
        "host", "mount", "5",
    ]  # fmt: skip
    result = in_agent(body, mounts=(f"memory:none:{point}",), env=env)
    assert result.ok() == f"result {expected}\n"
