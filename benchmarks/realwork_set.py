"""The work that is measured by realwork.py: what it needs, and shell scripts that do it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
FILES = 10_000
PATH = "/usr/local/bin:/usr/bin:/bin"
_WALK = """package main

import (
	"io/fs"
	"os"
	"path/filepath"
)

func main() {
	filepath.WalkDir(os.Args[1], func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			_, err = d.Info()
		}
		return err
	})
}
"""
_CONFIGURE = r"""#!/bin/sh
# As configure scripts of autoconf do: small programs are compiled, and results noted.
rm -rf conf && mkdir conf && cd conf || exit 1
echo '/* made by configure */' > config.h
for name in stdio stdlib string unistd stdint inttypes sys/stat sys/types fcntl nothing gone; do
    printf '#include <%s.h>\nint main(void) { return 0; }\n' "$name" > conftest.c
    if cc -c -o conftest.o conftest.c 2> conftest.err; then
        tr 'a-z/' 'A-Z_' <<END | sed 's/^/#define HAVE_/; s/$/_H 1/' >> config.h
$name
END
    fi
    rm -f conftest.*
done
for tool in gawk mawk nawk awk sed grep expr install; do
    saved=$IFS; IFS=:
    for place in $PATH; do
        if test -x "$place/$tool"; then echo "$tool $place" >> tools; break; fi
    done
    IFS=$saved
done
for step in 1 2 3 4 5 6 7 8 9 10; do
    expr "x$step" : 'x\(.*\)' > /dev/null
    echo "@A@ @B@" | sed -e "s/@A@/$step/" -e 's/@B@/x/' > out.$step
    cat out.$step >> all; mv -f out.$step done.$step
done
"""


class Work(NamedTuple):
    """A row: its name, a script, and the programs that it takes."""

    name: str
    script: str
    needs: tuple[str, ...] = ()


WORK = (
    Work("find", "find tree -newer /bin/sh; find tree -type f -size +1k"),
    Work("git status", "cd tree && git status; git status", ("git",)),
    Work("tar 10k files", "tar -cf x.tar tree && rm x.tar", ("tar",)),
    Work("unpack 10k files", "mkdir out && tar -xf tree.tar -C out", ("tar",)),
    Work("rm -rf", "rm -rf out"),
    Work("python start", "for i in 1 2 3 4 5; do python3 -c 'import json'; done", ("python3",)),
    Work("configure", "sh ./configure", ("cc",)),
    Work("gcc, make -j2", "make -s -C project clean; make -s -C project -j2", ("cc", "make")),
    Work("sqlite insert", "rm -f x.db; sqlite3 x.db < insert.sql", ("sqlite3",)),
    Work("Go walk", "./walk tree; ./walk tree; ./walk tree", ("go",)),
    Work(
        "redis loopback",
        "redis-server --port 17379 --save '' "
        "--daemonize no & i=0; while [ $i -lt 100 ] && ! redis-cli -p 17379 ping; do sleep 0.02; "
        "i=$((i + 1)); done; redis-benchmark -p 17379 -n 20000 -c 10 -t set,get -q; "
        "redis-cli -p 17379 shutdown; wait",
        ("redis-server", "redis-benchmark", "redis-cli"),
    ),
    Work("npm install", "rm -rf app/node_modules; cd app && npm install --offline", ("npm",)),
    Work("fork+exec", "./realwork start 300 /bin/true", ("cc",)),
    Work("threads", "./realwork threads 3000", ("cc",)),
    Work("shell loop", "for i in 1 2 3 4 5 6 7 8 9 10; do for j in 1 2 3 4 5 6 7 8 9 10; do "
         "/bin/true; /bin/echo; done; done"),
)  # fmt: skip


def missing(work: Work) -> list[str]:
    """The programs that a row takes and this machine hasn't got."""
    return [name for name in work.needs if shutil.which(name, path=PATH) is None]


def prepare(place: Path) -> None:
    """Make in an empty directory what the scripts work on. CalledProcessError."""
    tree = place / "tree"
    for number in range(100):
        directory = tree / f"d{number % 10}" / f"e{number}"
        directory.mkdir(parents=True)
        for file in range(FILES // 100):
            (directory / f"file{file}.txt").write_text(f"{number} {file}\n" * (file % 40))
    subprocess.run(["tar", "-cf", "tree.tar", "tree"], cwd=place, check=True)
    (place / "configure").write_text(_CONFIGURE)
    inserts = "".join(f"INSERT INTO t VALUES ({n}, 'some text {n}');\n" for n in range(300))
    many = "".join(f"INSERT INTO t VALUES ({n}, 'more {n}');\n" for n in range(20_000))
    (place / "insert.sql").write_text(f"CREATE TABLE t (a, b);\n{inserts}BEGIN;\n{many}COMMIT;\n")
    project = place / "project"
    project.mkdir()
    names = [f"part{number}" for number in range(16)]
    for name in names:
        (project / f"{name}.c").write_text(
            f"#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n#include <unistd.h>\n"
            f'int {name}(int n) {{ char t[99]; snprintf(t, 99, "%d", n); return atoi(t); }}\n'
        )
    (project / "main.c").write_text("int main(void) { return 0; }\n")
    objects = " ".join(f"{name}.o" for name in [*names, "main"])
    (project / "Makefile").write_text(
        f"CFLAGS = -O2\nall: {objects}\n\tcc -o all {objects}\nclean:\n\trm -f all *.o\n"
    )
    (place / "app").mkdir()
    for name in ("one", "two"):
        package = place / "packages" / name
        package.mkdir(parents=True)
        (package / "package.json").write_text(f'{{"name": "{name}", "version": "1.0.0"}}')
        for number in range(100):
            (package / f"m{number}.js").write_text(f"module.exports = {number}\n")
    (place / "app/package.json").write_text(
        '{"name": "app", "version": "1.0.0", "dependencies": '
        '{"one": "file:../packages/one", "two": "file:../packages/two"}}'
    )
    if shutil.which("cc"):
        program = [HERE / "realwork.c", "-o", place / "realwork", "-O2", "-pthread"]
        subprocess.run(["cc", *program], check=True)
    if shutil.which("git"):
        git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=m"]
        for step in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "all"]):
            subprocess.run([*git, *step], cwd=tree, check=True)
    if shutil.which("go"):
        (place / "walk.go").write_text(_WALK)
        subprocess.run(["go", "build", "-o", "walk", "walk.go"], cwd=place, check=True, timeout=300)
