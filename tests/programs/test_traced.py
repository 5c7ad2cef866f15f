"""Guests under a debugger: their registers can't be changed, and yet all is as on the host."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from harness import Compiler, Runner
from same import Same

STRACE = "strace -f -qq -o /dev/null -e trace={calls} "
SCRIPTS = {
    "directories": r"""
mkdir -p a/b/c; cd a; pwd -P | sed 's,.*/,,'; cd b/c; cd ../..; cd ..; (cd a/b && touch f && cd .. && ls b); cd "$PWD/a/b"; ls; cd /; cd - >/dev/null; pwd | sed 's,.*/,,'; cd .. ; cd ..
rm -rf a/b; cp -r a x; find . | sort; mkdir -p t/u/v; touch t/u/v/w; find t -execdir echo {} \; ; chmod -R go-w t; du -a t | wc -l; tar cf - t | (mkdir out; cd out; tar xf -; find . | sort); rm -r t; python3 -c 'import os; os.chdir("out"); os.fchdir(os.open(".", 0)); print(os.getcwd()[-4:], os.listdir(".")); d = os.open("t", 0); os.fchdir(d); os.close(d); print(os.getcwd()[-6:], os.listdir(".")); open("new", "w"); os.mkdir("m"); os.chdir("m"); os.chdir(".."); print(sorted(os.listdir(".")))'; ls out/t
""",
    "programs": r"""
cp /bin/echo e; cp /bin/sh sh; ./e one; $PWD/e two; ./sh -c './e three; ./e four & wait; exec ./e five'; ln -s e l; ./l six; (cd /; $OLDPWD/e seven); mkdir d; cp e d; d/e eight; (cd d; ../e nine; ./e ten); PATH=$PWD:$PATH; e eleven; env ./e twelve; echo thirteen | xargs ./e; find . -name e -exec {} found \; ; python3 -c 'import subprocess; print(subprocess.run(["./e", "spawned"], capture_output=True).stdout, subprocess.run(["./e", "there"], cwd="d", capture_output=True).stdout)'; ln -s /bin/echo h; ./h host; ./none; chmod -x e; ./e; (exec -a name ./sh -c 'echo $0'); cp /bin/cat c; ./c /proc/self/comm; readlink /proc/self/exe | sed 's,.*/,,'; for i in $(seq 40); do ./sh -c "./c /dev/null; exit $((i % 3))"; printf $?; done; echo
""",
    "scripts": r"""
say() { printf '%b' "$2" >$1; chmod +x $1; }
say s '#!/bin/sh\necho $0 $# "$@"\n'; ./s a 'b c'; $PWD/s x | sed "s,$PWD,,"; (cd /; $OLDPWD/s y | sed "s,$OLDPWD,,"); mkdir d; cp s d; d/s z; (cd d; ../s w); PATH=$PWD:$PATH; s v | sed "s,$PWD,,"; say n '#!./s with args\n'; ./n 1 2; say p '#!/usr/bin/env python3\nimport sys; print(sys.argv)\n'; ./p 1; say b '#!/bin/sh\n[ "$1" = 0 ] || $0 $(($1 - 1)); echo $1\n'; ./b 5; cp /bin/echo e; say i '#!./e interpreter\n'; ./i x; say m '#!/none\n'; ./m; say o 'echo no first line\n'; ./o; ln -s s l; ./l k; find . -name s -exec {} found \; ; echo q | xargs ./s; say c '#!/bin/sh\ncat /proc/$$/comm\n'; ./c; ./s $(seq 500) | wc -c; say mk '#!/usr/bin/make -f\nall: ; @./s made\n'; ./mk; ./s & wait; ./s; nohup ./s t 2>/dev/null
""",
    "pipes and sockets": r"""
mkfifo f; echo through >f & cat f; wait; (cat f >out) & echo again >f; wait; cat out; exec 3<>f; echo kept >&3; read -r x <&3; echo $x; ln -s /dev/null null; echo x >null; cat null; ln -s /etc/hostname h; cat h | wc -l; ls -L h | wc -l; [ -e h ] && echo there; ln -s $HOME/none w; [ -e w ] || echo missing
python3 -c '
import os, socket
s = socket.socket(socket.AF_UNIX); s.bind("s"); s.listen()
c = socket.socket(socket.AF_UNIX); c.connect("s"); d = s.accept()[0]; c.send(b"stream"); print(d.recv(10), c.getpeername(), s.getsockname())
a, b = (socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in "ab"); a.bind("a"); print(b.sendto(b"datagram", "a"), a.recv(20)); b.connect("a"); b.send(b"connected"); print(a.recv(20))
try: b.sendto(b"x", "none")
except OSError as e: print(e.strerror)
try: c.connect("a")
except OSError as e: print(e.strerror)
f = open("shown", "w+"); f.write("x" * 10000); f.flush(); os.link("shown", "l2"); os.rename("l2", "l3"); print(os.stat("l3").st_nlink, os.path.getsize("shown"))'
""",
    "builds": r"""
cat >main.c <<'END'
#include <stdio.h>
int main(int c, char **v) { printf("%d %s\n", c, v[c - 1]); return 0; }
END
printf 'all: p\n\t./p made\np: main.o\n\tgcc -o $@ $^\n%%.o: %%.c tool\n\t./tool $<; gcc -c $<\n' >Makefile; printf '#!/bin/sh\necho tool $1\n' >tool; chmod +x tool; make -s -j2; printf '#!/bin/sh\nset -e\necho checking; echo "int main(void) { return 0; }" >conftest.c\ngcc conftest.c -o conftest; ./conftest && echo works; ./tool "$(basename "$0")"\n' >configure; chmod +x configure; ./configure; sh ./configure; git init -q r && cd r && git config user.name n && git config user.email e && echo x >f && git add f && git commit -qm m && git status --short && git log --format=%s
""",
}


@pytest.mark.parametrize("calls", ["all", "exit"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_strace(same: Same, name: str, calls: str) -> None:
    """With a stop at each call, and with hardly any."""
    script = STRACE.format(calls=calls) + "bash -c '" + SCRIPTS[name].replace("'", "'\\''") + "'"
    same(f"{script}\nexit 0", "strace", "gcc", "make", "git")


THREADS = r"""
import os, subprocess, threading
top = os.getcwd(); out = []
os.mkdir("d"); open("d/s", "w").write("#!/bin/sh\npwd | sed 's,.*/,,'; exit 3\n"); os.chmod("d/s", 0o755)
def work(n):
    for i in range(4):
        p = subprocess.run(["./s", str(n)], cwd="d", capture_output=True); out.append((p.stdout, p.returncode))
        pid = os.fork()
        if pid == 0:
            os.chdir("d"); os.chdir(".."); os.chdir(top + "/d"); os._exit(os.getcwd() != top + "/d")
        out.append(os.waitpid(pid, 0)[1])
threads = [threading.Thread(target=work, args=(n,)) for n in range(5)]
[t.start() for t in threads]; [t.join() for t in threads]
print(sorted(set(map(repr, out))), len(out), os.getcwd() == top)
"""


@pytest.mark.parametrize("calls", ["all", "exit"])
def test_threads(same: Same, calls: str) -> None:
    quoted = THREADS.replace("'", "'\\''")
    same(f"{STRACE.format(calls=calls)} /usr/bin/python3 -I -S -c '{quoted}'", "strace")


def test_attaching(same: Same) -> None:
    """strace -p and gdb -p to a process that goes on changing its directory, and leaving it again.

    For a moment of each change the supervisor has the thread, and EPERM is the answer.
    """
    same(
        r"""
mkdir d; cat >loop.py <<'END'
import os, time
top, n = os.getcwd(), 0
while not os.path.exists(top + "/end"):
    os.chdir("d"); assert os.getcwd() == top + "/d"; os.chdir(".."); n += 1; time.sleep(0.002)
print(n > 10, os.getcwd() == top)
END
again() { for try in 1 2 3 4 5 6; do "$@" >said 2>&1; grep -q 'not permitted' said || break; done; cat said; }
/usr/bin/python3 loop.py & for i in 1 2 3; do again timeout -s INT 0.5 strace -qq -o log -p $!; grep -c 'chdir("d") *= 0' log | awk '{print ($1 > 2)}'
again timeout -s INT 0.4 strace -qq -e trace=exit -p $!; again gdb -nx -q -batch -p $! -ex 'catch syscall chdir' -ex continue -ex continue -ex continue -ex detach | grep -c 'Catchpoint 1 .*chdir'; sleep 0.1; done; touch end; wait $!; echo $?""",
        "strace",
        "gdb",
    )


def test_gdb(same: Same) -> None:
    same(
        r"""
mkdir d; cat >p.c <<'END'
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
static void shown(int number)
{
    char where[4096];
    printf("%d %s
", number, strrchr(getcwd(where, sizeof where), '/'));
}
int main(void)
{
    for (int i = 0; i < 3; i++) {
        if (chdir("d"))
            return 1;
        shown(i);
        if (chdir(".."))
            return 2;
        shown(i);
    }
    mkfifo("p", 0600);
    if (system("cat p & echo through >p; wait; ./s"))
        return 3;
    return execl("./s", "s", "executed", (char *)0);
}
END
printf '#!/bin/sh
echo script $1
' >s; chmod +x s; gcc -g -o p p.c; show() { grep -v -e warning -e libthread -e Using -e debuginfo | sed -E 's/0x[0-9a-f]+/ADDR/g; s/(process|LWP|Thread) [0-9]+/N/g; '"s,$PWD,DIR,g"; }
gdb -nx -q -batch -ex run ./p 2>&1 | show; gdb -nx -q -batch -ex 'break shown' -ex run -ex bt -ex 'continue 2' -ex 'print number' -ex finish -ex next -ex 'delete' -ex 'catch syscall chdir' -ex continue -ex continue -ex 'delete' -ex continue ./p 2>&1 | show
gdb -nx -q -batch -ex 'break main' -ex run -ex next -ex next -ex next -ex next -ex 'print i' -ex kill ./p 2>&1 | show; gdb -nx -q -batch -ex 'set follow-fork-mode child' -ex 'set detach-on-fork off' -ex run ./p 2>&1 | show | grep -c script | awk '{print ($1 > 0)}'""",
        "gcc",
        "gdb",
    )


@pytest.mark.parametrize("way", ["path", "descriptor", "thread", "vfork", "spawn", "many", "fd"])
def test_calls(same: Same, guest_binary: Compiler, way: str) -> None:
    guest = guest_binary("proc_exec")
    setup = f"cp {guest} p && mkdir sub && ln -s ../p sub/p && printf '#!/bin/echo a\\n' >s && chmod +x s && cp s sub\n"
    again = f"./p {way} ./p s none | sed 's,/dev/fd/[0-9]*,FD,'"
    same(f"{setup}{STRACE.format(calls='all')} sh -c {again!r}", "strace")


def test_a_debugger_in_vfork(runner: Runner, tmp_path: Path) -> None:
    """gdb waits in vfork for a shell whose exec would be changed: an error, and not for ever."""
    if shutil.which("gdb") is None:
        pytest.skip("gdb is not installed")
    shutil.copy("/bin/sh", tmp_path / "sh")
    argv = ["gdb", "-q", "-nx", "-batch", "-ex", "run", "-ex", "echo after", "/bin/true"]
    options = ["--bind", f"{tmp_path}:/opt", "-e", "SHELL=/opt/sh"]
    shown = runner.umvm(argv, options=options, timeout=25)
    assert "after" in shown.stdout + shown.stderr, shown
