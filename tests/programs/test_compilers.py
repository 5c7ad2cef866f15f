"""Compilers, linkers and debuggers: what they make in a served directory is executed there."""

from __future__ import annotations

import pytest
from same import Same

SOURCES = r"""
cat >main.c <<'END'
#include <stdio.h>
#include "part.h"
int main(int argc, char **argv)
{
    printf("%s %d %d\n", argv[0], argc, part(argc));
    return part(argc) & 0x7f;
}
END
echo 'int part(int n);' >part.h
printf '#include "part.h"\nint part(int n)\n{\n    return n * 21;\n}\n' >part.c
"""
SCRIPTS = {
    "programs": (
        SOURCES
        + r"""
gcc -c main.c -o main.o && gcc -c part.c && gcc -o p main.o part.o && ./p; echo $?
gcc -O2 -Wall -o q main.c part.c && ./q a b; echo $?
gcc -static -o s main.c part.c && ./s; echo $?; gcc -no-pie -o n main.c part.c && ./n x; echo $?
gcc -static-pie -o sp main.c part.c && ./sp; echo $?; strip s && ./s; rm -f *.o
gcc -save-temps -pipe -o t main.c part.c; ls; gcc -E main.c | grep -c part; gcc -MM main.c part.c
gcc -flto -o l main.c part.c && ./l; size l | wc -l; objcopy --strip-all l l2 && ./l2; cp p p2; cmp p p2
gcc -x c - -o from_stdin <<<'int main(void) { return 9; }' && ./from_stdin; echo $?; ./none; ./main.c
echo 'int main(void) { return x; }' >bad.c; gcc bad.c -o bad 2>&1 | head -2; ls bad; readelf -h p | grep Type
gcc -o p main.c part.c & gcc -o q main.c part.c & wait; ./p; ./q; nm p | grep ' part$' | cut -c18-; strings p | grep -c '%s'
""",
        ("gcc",),
    ),
    "libraries": (
        SOURCES
        + r"""
mkdir lib; gcc -shared -fPIC -Wl,-soname,libpart.so.1 -o lib/libpart.so.1.0 part.c; ln -s libpart.so.1.0 lib/libpart.so.1
ln -s libpart.so.1 lib/libpart.so; gcc -o o main.c -Llib -lpart -Wl,-rpath,'$ORIGIN/lib' && ./o; echo $?
ldd ./o | grep part | sed "s,$PWD,,; s/(.*//"; (cd /; "$OLDPWD/o" | sed 's,.*/,,'); ln -s o link; ./link; mkdir elsewhere; ln o elsewhere/o
gcc -o e main.c -Llib -lpart; ./e 2>&1 | sed 's/.*part/part/'; LD_LIBRARY_PATH=$PWD/lib ./e; LD_LIBRARY_PATH=lib ./e; (cd lib; LD_LIBRARY_PATH=. ../e)
mv lib moved; ./o 2>&1 | sed 's/.*part/part/'; mv moved lib; ./o; echo 'int part(int n) { return -n; }' >other.c
gcc -shared -fPIC -o other.so other.c; LD_PRELOAD=$PWD/other.so ./o; LD_PRELOAD=./other.so ./o x; LD_PRELOAD=none.so ./o 2>&1 | tail -1
ar rcs libstat.a part.o 2>&1 | head -1; gcc -c part.c; ar rcs libstat.a part.o; ar t libstat.a; gcc -o a main.c -L. -lstat && ./a; ranlib libstat.a
cat >dl.c <<'END'
#include <dlfcn.h>
#include <stdio.h>
int main(int c, char **v)
{
    void *h = dlopen(v[1], RTLD_NOW);
    int (*part)(int) = h ? (int (*)(int))dlsym(h, "part") : 0;
    Dl_info i;
    printf("%d\n", part ? part(2) : c);
    if (part && dladdr((void *)part, &i))
        puts(i.dli_fname);
    return h ? dlclose(h) : 1;
}
END
gcc -o dl dl.c; ./dl ./lib/libpart.so; ./dl ./other.so; ./dl other.so; ./dl ./none.so; ./dl ./dl.c; LD_LIBRARY_PATH=. ./dl other.so
gcc -shared -fPIC -o lib/libpart.so.2 other.c; ln -sf libpart.so.2 lib/libpart.so.1; ./o; rm lib/libpart.so.2; ./o 2>&1 | sed 's/.*part/part/'
LD_DEBUG=libs ./o 2>/dev/null; LD_TRACE_LOADED_OBJECTS=1 ./a | wc -l; /lib64/ld-linux-x86-64.so.2 ./a; cp /lib64/ld-linux-x86-64.so.2 ld; ./ld ./a b
gcc -o own main.c part.c -Wl,--dynamic-linker=$PWD/ld && ./own; rm ld; ./own; echo $?
""",
        ("gcc", "ar", "ldd"),
    ),
    "make": (
        SOURCES
        + r"""
cat >Makefile <<'END'
OBJECTS = main.o part.o $(patsubst %,gen%.o,1 2 3 4 5 6)
prog: $(OBJECTS)
	gcc -o $@ $^
gen%.c:
	@echo 'int gen$*(void) { return $*; }' >$@
%.o: %.c part.h
	gcc -c -o $@ $<
.PHONY: clean
clean:
	rm -f prog *.o gen*
END
make -s -j2 && ./prog; make -q && echo up to date; sleep 0.02; touch part.h; make -n | grep -c gcc; make -s -j4 && ./prog; rm part.o; make | grep -c gcc
touch -d '+1 hour' main.c; make 2>&1 | grep -c skew; make clean; ls; make -s none; make -C / -f "$PWD/Makefile" -n none; mkdir sub; printf 'all:\n\t@pwd | sed "s,.*/,,"\n\t@$(MAKE) -s -f two\n' >sub/Makefile
printf 'x := $(shell ls | wc -l)\nall:\n\t@echo $(x) $(wildcard *)\n' >sub/two; make -s -C sub; make -C sub --no-print-directory; echo 'all: ; exit 3' | make -f - 2>&1 | sed 's,/tmp/[^:]*,F,'; echo ${PIPESTATUS[1]}
""",
        ("gcc", "make"),
    ),
    "debugger": (
        SOURCES
        + r"""
gcc -g -O0 -o p main.c part.c; quiet() { grep -v -e warning -e libthread -e Using | sed -E 's/0x[0-9a-f]+/ADDR/g; s/(process|LWP) [0-9]+/N/g; '"s,$PWD,DIR,g"; }
gdb -nx -q -batch -ex 'break part' -ex run -ex bt -ex 'print n' -ex 'info source' -ex finish -ex 'set var n = 3' -ex continue --args ./p one two 2>&1 | quiet
gdb -nx -q -batch -ex 'start' -ex 'next' -ex 'list 5,6' -ex 'info proc exe' -ex 'info proc cwd' -ex 'watch argc' -ex kill ./p 2>&1 | quiet | sed 's/.*_start.*//'
gdb -nx -q -batch -ex 'catch syscall exit_group' -ex run -ex 'x/i $pc-2' -ex cont ./p 2>&1 | quiet; cat >loop.c <<'END'
#include <unistd.h>
volatile int go = 1;
int main(void) { while (go) usleep(1000); return 5; }
END
gcc -g -o loop loop.c; ./loop & sleep 0.2; gdb -nx -q -batch -p $! -ex 'set var go = 0' -ex 'print go' -ex detach 2>&1 | grep '^.1 ='; wait $!; echo $?
printf 'int main(void) { *(volatile int *)0 = 1; }' >crash.c; gcc -g -o crash crash.c; gdb -nx -q -batch -ex run -ex bt ./crash 2>&1 | quiet; cat >fork.c <<'END'
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>
int main(void) { if (!fork()) { execl("./p", "p", "child", (char *)0); } wait(0); puts("parent"); return 0; }
END
gcc -g -o fork fork.c; gdb -nx -q -batch -ex 'set follow-fork-mode child' -ex 'break part' -ex run -ex bt -ex cont ./fork 2>&1 | quiet | grep -e '^#' -e Breakpoint -e child
""",
        ("gcc", "gdb"),
    ),
    "strace": (
        SOURCES
        + r"""
gcc -g -o p main.c part.c; strace -o log ./p; echo $?; tail -1 log; grep -c '^write(1' log; strace -f -o log sh -c './p; cat part.h >copy; (cd /; true)'; grep -c 'exited with' log; cat copy; grep -o 'openat(AT_FDCWD, "copy"[^)]*)' log; grep -o 'execve("./p", \["./p"\]' log
strace -e trace=openat,stat,newfstatat -o log ls none; grep -c ENOENT.*none log | head -1; grep -o '"none"[^)]*) = .*' log | sed 's/0x[0-9a-f]*/ADDR/' | tail -1; strace -c -o sum cat part.h; grep -c read sum; strace -f -y -e trace=write -o log sh -c 'echo hi >out; cat out'; sed "s/^[0-9]* *//; s,$PWD,DIR," log | grep -v -e +++ -e SIG
strace -e inject=unlink,unlinkat:error=EIO -o /dev/null rm out 2>&1; ls out; strace -f -e trace=execve -o log sh -c 'sh -c "./p; true"; true'; grep -c 'execve(' log; sleep 5 & strace -p $! -o log 2>/dev/null & sleep 0.5; kill %1; wait %1; wait; tail -1 log | sed 's/[0-9]* //'
strace -f -e trace=rename,unlinkat,mkdir,chmod,fchmodat -o log sh -c 'mkdir d; mv out d; chmod 600 d/out; rm d/out'; sed 's/^[0-9]* *//; s/+++.*//' log | grep -v '^$' | grep -v SIG
""",
        ("gcc", "strace"),
    ),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_script(same: Same, name: str) -> None:
    script, tools = SCRIPTS[name]
    same(f"{script}\nexit 0", *tools)
