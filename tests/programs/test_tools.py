"""git, SQLite, compilers, interpreters, archivers and debuggers in a served file system."""

from __future__ import annotations

import pytest
from same import Same

GIT = """
git init -q -b main r && cd r && git config user.email a@b && git config user.name n
export GIT_AUTHOR_DATE='2026-01-01T00:00:00Z' GIT_COMMITTER_DATE='2026-01-01T00:00:00Z'
for i in $(seq 60); do mkdir -p d$((i % 7)); echo "file $i" >d$((i % 7))/f$i; done
git add -A && git commit -qm one && git log --format='%H %T'
git checkout -q -b side && echo side >>d1/f1 && git mv d2/f2 moved && git commit -qam two
git checkout -q main && echo main >>d3/f3 && git commit -qam three && git merge -q -m four side
git status --short && git gc -q && git fsck && git log --format='%H %s' && git stash list
git worktree add -q ../w side && ls ../w && git clone -q . ../c && git -C ../c log --oneline | wc -l
git rm -rq d4 && git commit -qm five && git bisect start -q HEAD HEAD~2 && git bisect reset -q
git diff HEAD~1 --stat | tail -1 && git count-objects | cut -d' ' -f1
"""
SQLITE = """
for mode in delete wal truncate persist; do
  sqlite3 $mode.db "pragma journal_mode=$mode; create table t(a integer primary key, b text);
    with recursive c(x) as (select 1 union all select x+1 from c where x<2000)
    insert into t select x, hex(randomblob(40)) from c; select count(*), sum(a) from t;"
  (for i in $(seq 20); do sqlite3 -cmd '.timeout 9000' $mode.db "insert into t(b) values('x')"; done) &
  for i in $(seq 20); do sqlite3 -cmd '.timeout 9000' $mode.db "insert into t(b) values('y')"; done
  wait; sqlite3 $mode.db "select b, count(*) from t where length(b)=1 group by b;
    vacuum; pragma integrity_check;"
  sqlite3 $mode.db ".backup copy.db" && sqlite3 copy.db "select count(*) from t"
done; ls
"""
COMPILER = r"""
cat >m.c <<'X'
#include <stdio.h>
int answer(void);
int main(int c, char **v) { printf("%d %s\n", answer(), c > 1 ? v[1] : "-"); return 3; }
X
echo 'int answer(void) { return 42; }' >a.c
cat >Makefile <<'X'
all: prog static
liba.so: a.c
	gcc -g -shared -fPIC -o $@ a.c
prog: m.c liba.so
	gcc -g -o $@ m.c -L. -la -Wl,-rpath,'$$ORIGIN'
static: m.o a.o
	gcc -static -o $@ $^
X
make -s -j2 && ./prog one; echo $?; ./static two; echo $?
mkdir sub && cp prog liba.so sub && (cd sub && ./prog) ; sub/prog; rm liba.so; ./prog 2>&1 | tail -c 60
make -s && nm prog | grep -c ' T main' && touch -d '2 days ago' prog && make -s -n | wc -l
"""
DEBUGGERS = """
printf '#include <stdio.h>\\nint main(void)\\n{\\n    puts("seen");\\n    return 0;\\n}\\n' >m.c
gcc -g -o m m.c
gdb -q -batch -ex 'break main' -ex run -ex bt -ex continue ./m 2>&1 | grep -E 'seen|main \\(|exited' | sed 's,process [0-9]*,process N,'
strace -f -o out ./m && grep -c '^[0-9]* *write(1, "seen' out
strace -f -e trace=openat -o out sh -c 'cat m.c >/dev/null' && grep -c m.c out
"""
GO = """
cat >main.go <<'X'
package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
)

func main() {
	var wait sync.WaitGroup
	for i := 0; i < 20; i++ {
		wait.Add(1)
		go func(i int) {
			defer wait.Done()
			os.MkdirAll(fmt.Sprintf("d/%d", i), 0755)
			os.WriteFile(fmt.Sprintf("d/%d/f", i), []byte("text"), 0644)
		}(i)
	}
	wait.Wait()
	count := 0
	filepath.Walk("d", func(string, os.FileInfo, error) error { count++; return nil })
	out, err := exec.Command("sh", "-c", "pwd | tail -c 3; ls d | wc -l").Output()
	fmt.Println(count, string(out), err)
}
X
GOCACHE=/tmp/umvm-go-cache GOFLAGS=-mod=mod go build -o prog main.go && ./prog && rm -r d && ls
"""
PYTHON = """
cat >t.py <<'X'
import mmap, multiprocessing, os, shutil, subprocess, sys, tempfile, zipfile

def square(x):
    open(f"p{x}", "w").write(str(x * x))
    return x * x

if __name__ == "__main__":
    with multiprocessing.Pool(3) as pool:
        print(pool.map(square, range(8)))
    print(sorted(e.name for e in os.scandir(".")))
    with open("map", "w+b") as f:
        f.truncate(10000)
        with mmap.mmap(f.fileno(), 0) as m:
            m[5000:5004] = b"abcd"
        f.seek(5000)
        print(f.read(4))
    os.mkdir("pkg"); open("pkg/__init__.py", "w").write("value = 7")
    shutil.make_archive("z", "zip", "pkg")
    sys.path.insert(0, os.getcwd())
    import pkg
    print(pkg.value, zipfile.ZipFile("z.zip").namelist())
    print(subprocess.run(["cat"], input=b"in", stdout=open("out", "wb")).returncode, open("out").read())
    with tempfile.TemporaryDirectory(dir=".") as d:
        print(os.path.isdir(d))
X
/usr/bin/python3 t.py && /usr/bin/python3 -m compileall -q pkg && ls pkg pkg/__pycache__
/usr/bin/python3 -m venv --without-pip v && v/bin/python -c 'import sys; print(sys.prefix[-2:])'
"""
PERL = r"""
perl -e 'open F, ">f"; print F "line $_\n" for 1..5; close F; open F, "+<f"; seek F, 7, 0;
  print scalar <F>; print -s "f", " ", (-x "f" ? "x" : "-"), "\n"; rename "f", "g"; print join(",", glob "*"), "\n";
  mkdir "d"; chdir "d"; symlink "../g", "l"; print readlink("l"), " ", -e "l", "\n"; unlink "l"; chdir ".."; rmdir "d"'
perl -i -pe 's/line/row/' g && cat g
"""
NODE = """
cat >t.js <<'X'
const fs = require("fs"), cp = require("child_process");
(async () => {
  await fs.promises.mkdir("a/b/c", { recursive: true });
  await Promise.all([...Array(50).keys()].map(i => fs.promises.writeFile(`a/f${i}`, "x".repeat(i))));
  console.log((await fs.promises.readdir("a")).length, fs.statSync("a/f49").size);
  fs.createReadStream("t.js").pipe(fs.createWriteStream("copy")).on("finish", async () => {
    console.log(fs.readFileSync("copy").equals(fs.readFileSync("t.js")));
    console.log(cp.execSync("ls a | wc -l").toString().trim());
    fs.rmSync("a", { recursive: true });
    console.log(fs.readdirSync("."));
  });
})();
X
node t.js
"""
ARCHIVES = """
mkdir -p t/sub && echo one >t/one && ln t/one t/hard && ln -s one t/soft && mkfifo t/pipe
truncate -s 1M t/sparse && echo end >>t/sparse && chmod 4750 t/one && touch -d @1000000000 t/sub
setfattr -n user.note -v text t/one 2>/dev/null; umask 022
tar --xattrs --sparse -cf a.tar t && mkdir x && tar --xattrs -xpf a.tar -C x && tar -tf a.tar | sort
(cd x && find t -printf '%p %y %m %n %s %l\\n' | grep -v '^t d\\|sub d' | sort); stat -c %Y x/t/sub
cmp t/sparse x/t/sparse && (cd t && find . -type f | cpio -o -H newc --quiet) >c && cpio -t --quiet <c | sort
cp -a t copy && diff -r --no-dereference t/sub copy/sub && gzip -k t/sparse && gzip -t t/sparse.gz
dd if=t/sparse of=dd bs=64k conv=sparse,notrunc 2>/dev/null && cmp dd t/sparse && stat -c '%s' dd
"""
BUSYBOX = """
busybox sh -c 'mkdir d; for i in 1 2 3; do echo $i >d/$i; done; busybox ls d; busybox cat d/*
busybox cp -a d e; busybox rm -r d; busybox find e -type f | busybox sort; busybox tar cf - e |
busybox tar tf - | busybox sort; busybox md5sum e/1; busybox sed -i s/2/two/ e/2; busybox cat e/2; cd e; pwd | tail -c 3'
mkdir bin && cp $(command -v busybox) bin && bin/busybox echo from the mount && bin/busybox sh -c 'ls bin'
"""

SCRIPTS = {
    "git": (GIT, ("git",)),
    "sqlite": (SQLITE, ("sqlite3",)),
    "compiler": (COMPILER, ("gcc", "make", "nm")),
    "debuggers": (DEBUGGERS, ("gcc", "gdb", "strace")),
    "go": (GO, ("go",)),
    "python": (PYTHON, ("/usr/bin/python3",)),
    "perl": (PERL, ("perl",)),
    "node": (NODE, ("node",)),
    "archives": (ARCHIVES, ("tar", "cpio", "gzip")),
    "busybox": (BUSYBOX, ("busybox",)),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_as_on_the_host(same: Same, name: str) -> None:
    script, tools = SCRIPTS[name]
    assert same(script, *tools).strip()
