"""Executing what lies in a mount: programs and scripts of all kinds, by all calls."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Compiler, Result
from same import Same

BINARY = "cp {guest} p && chmod 755 p && mkdir sub && ln -s p l && ln -s ../p sub/p && cp p sub/q\n"
WAYS = (
    "path descriptor O_PATH directory nofollow flags empty fd thread vfork spawn odd many written cloexec"
).split()


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("way", WAYS)
def test_calls(same: Same, guest_binary: Compiler, way: str, kind: str) -> None:
    guest = guest_binary("proc_exec", static=kind == "static")
    same(
        BINARY.format(guest=guest)
        + f"./p {way} ./p l none sub/q {'' if way in ('vfork', 'spawn') else '$PWD/p'} ../p sub p/"
    )


@pytest.mark.parametrize("way", ["path", "descriptor", "directory", "thread", "spawn", "vfork"])
def test_scripts_by_calls(same: Same, guest_binary: Compiler, way: str) -> None:
    same(
        BINARY.format(guest=guest_binary("proc_exec"))
        + "printf '#!/bin/echo arg\\n' >s; printf '#!p show\\n' >r; printf '#!./s\\n' >n; echo echo plain >t\n"
        f"chmod +x s r n t; cp s r n sub; ./p {way} s ./r n t | sed 's,/dev/fd/[0-9]*,FD,'"
    )


SCRIPTS = {
    "kinds": r"""
say() { printf '%b' "$2" >$1; chmod +x $1; }
say a '#!/bin/sh\necho $0 "$@"\n'; ./a 1 '2 3'; $PWD/a | sed "s,$PWD,,"; cd ..; d/a x; cd d; PATH=$PWD:$PATH; a 1 | sed "s,$PWD,,"
say b '#!/bin/echo  two words \n'; ./b x; say c '#! \t /bin/echo\t a\tb\t\nrest'; ./c x; say d '#!/bin/echo'; ./d x; say e '#!\n'; ./e; say f '#!   \nx'; ./f; say g ''; ./g; echo $?; say h 'echo no shebang $0\n'; ./h
say i '#!/none/such\n'; ./i; echo $?; say j '#!.\n'; ./j; say k '#!a arg\n'; ./k x; say l '#!./b one\n'; ./l x; say m '#!./l deeper\n'; ./m x; say n '#!/etc/passwd\n'; ./n; say o '#!/bin/sh -e\nfalse\necho not reached\n'; ./o; echo $?
say p '#!/usr/bin/env -S echo -n split\n'; ./p x; echo; say q '\0\0binary'; ./q 2>&1; echo $?; say r '#!/bin/echo\r\n'; ./r 2>&1 | cat -v; say s '#!/bin/cat\nits own text\n'; ./s; say t "#!$PWD/b absolute\n"; ./t x | sed "s,$PWD,,"; say u '#!/bin/sh\nexec ./a from u\n'; ./u
for n in 1 2 3 4 5 6 7; do say n$n "#!./n$((n - 1))\n"; done; say n0 '#!/bin/echo\n'; for n in 1 2 3 4 5 6 7; do ./n$n; echo $?; done 2>&1; ln -s a link; ./link; mkdir sub; ln -s ../a sub/up; sub/up; (cd sub; ./up); ln a hard; ./hard; mv a moved; ./moved; ./hard; ./link
""",
    "refusals": r"""
cp /bin/true t; chmod 644 t; ./t; echo $?; [ $(id -u) = 0 ] || { chmod 111 t; ./t; echo $?; chmod 011 t; ./t; echo $?; }; chmod 755 t; ./t; echo $?; ./t/; ./t/x; mkdir dir; ./dir; dir/; ./none; ./none/x; mkfifo p; chmod +x p; timeout 2 env ./p; ln -s loop loop; ./loop; ln -s none dang; ./dang; /dev/null; : >empty; chmod +x empty; ./empty; echo $?
printf '#!/bin/sh\necho hi\n' >s; ./s; sh s; chmod +x s; ./s; chmod 000 s; [ $(id -u) = 0 ] || ./s; chmod 755 s; printf '#!./t2\n' >i; chmod +x i; ./i; cp t t2; chmod 600 t2; ./i; chmod 755 t2; ./i; echo $?; chmod 644 i; ./i; printf '#!dir\n' >i; chmod +x i; ./i; head -c 100 /bin/true >short; chmod +x short; ./short; echo $?; (head -c 4 /bin/true; echo junk) >bad; chmod +x bad; ./bad; echo $?
cp /bin/sleep z; ./z 5 & sleep 0.2; echo x 2>&1 >z; echo $?; cp /bin/true z; echo $?; truncate -s 0 z; (: >>z); dd if=/dev/null of=z conv=notrunc; rm z && echo removed; kill $!; wait $! 2>/dev/null; cp /bin/true z; ./z; echo $?; (exec 3>>z; ./z; echo $?); ./z; echo $?; exec 3<>z; ./z; exec 3>&-; ./z; echo $?; exec 3<z; ./z; echo $?; cp /bin/sleep z2; ./z2 3 & sleep 0.1; mv z2 z3; cp /bin/true z2; ./z2; echo $?; echo x >z3; kill $!; wait $! 2>/dev/null; (exec ./none)
""",
    "long first lines": r"""
long=$(printf 'x%.0s' $(seq 120)); mkdir -p $long/$long/$long; for n in 90 125 126 127 128 200 250 252 253 254 255 256 257 300; do f=$(printf "$long/$long/$long" | cut -c1-$((n - 3))); f=${f%/}; case $f in *x) printf '#!/bin/echo in %s\n' $n >$f 2>/dev/null || continue; chmod +x $f; printf "#!$f\n" >s; chmod +x s; ./s arg 2>&1 | cut -c1-40; rm $f;; esac; done
for n in 100 230 240 244 245 246 247 248 249 250 300; do printf "#!/bin/echo $(printf 'y%.0s' $(seq $n))\n" >s; ./s arg | wc -c; printf "#!/bin/echo %${n}s z\n" >s; ./s arg | wc -c; printf "#!%${n}s/bin/echo z\n" >s; ./s arg | wc -c; printf "#!/bin/echo $(printf 'y%.0s' $(seq $n))" >s; ./s arg | wc -c; done 2>&1 | sed 's/.*bash.*: /bash: /'
""",
    "interpreters": r"""
cp /bin/echo e; cp $(command -v busybox || echo /bin/sh) busybox; printf '#!./e served\n' >s; chmod +x s; ./s x; (cd /; $OLDPWD/s x); printf "#!$PWD/e\n" >a; chmod +x a; (cd /; $OLDPWD/a y) | sed "s,$PWD,,"; host=$(mktemp -d /tmp/exec-XXXXXX); printf "#!$PWD/e from the host\n" >$host/h; chmod +x $host/h; $host/h z | sed "s,$host,,"; printf "#!$PWD/s\n" >$host/h; $host/h z | sed "s,$host,,; s,$PWD,,"; printf "#!$PWD/none\n" >$host/h; $host/h 2>&1 | sed "s,$host,,"; ln -s $PWD/e $host/l; $host/l through a link; ln -sf $host/h hl; printf "#!/bin/echo host\n" >$host/h; ./hl | sed "s,$host,,"; printf "#!$host/l\n" >s; ./s again; rm -r $host
printf '#!/bin/sh\ncase $0 in ./*) echo relative;; /*) echo absolute;; esac; . "${0%%/*}/lib"\n' >m; echo 'echo library' >lib; chmod +x m; ./m; $PWD/m; (cd /; $OLDPWD/m); mkdir sub; (cd sub; ../m); printf '#!/usr/bin/env python3\nimport sys, os; print(sys.argv, __file__, os.path.basename(sys.path[0]))\n' >p; chmod +x p; ./p 1; printf '#!/usr/bin/perl\nprint "$0 @ARGV\\n"' >q; chmod +x q; ./q 1 2; printf '#!/usr/bin/awk -f\nBEGIN { print ARGC, ARGV[1] }' >w; chmod +x w; ./w x; printf '#!/bin/sed -nf\n2p\n' >d; chmod +x d; seq 3 | ./d; printf '#!/usr/bin/make -f\nall: ; @echo made $@\n' >k; chmod +x k; ./k
""",
    "removed and renamed": r"""
exe() { readlink /proc/$1/exe | sed "s,$PWD,,"; }; cp /bin/sleep z; ./z 20 & sleep 0.1; exe $!; mv z y; exe $!; mkdir d; mv y d; exe $!; mv d e; exe $!; ln e/z q 2>/dev/null; ln e/y q; echo x >q; rm e/y; exe $!; echo x >q; cat /proc/$!/comm; kill $!; wait $! 2>/dev/null; echo x >q; cat q
cp /bin/sleep a; cp /bin/true b; ./a 20 & sleep 0.1; mv b a; exe $!; ./a; echo $?; cp /bin/false a; ./a; echo $?; kill $!; wait $! 2>/dev/null; cp /bin/sleep s1; ln -s s1 s2; ./s2 20 & sleep 0.1; exe $!; cat /proc/$!/comm; pgrep -P $$ s2 | wc -l; kill $!; wait $! 2>/dev/null
cat >f.py <<'END'
import os, sys
fd = os.open("true", os.O_RDONLY | os.O_CLOEXEC)
os.unlink("true")
if os.fork() == 0:
    os.execve(fd, ["any", "name"], {})
print(os.wait()[1])
os.lseek(fd, 0, 0)
print(os.read(fd, 4), os.fstat(fd).st_nlink)
if os.fork() == 0:
    os.execve(f"/proc/self/fd/{fd}", ["any"], {})
print(os.wait()[1])
fd = os.open("script", os.O_RDONLY)
os.unlink("script")
if os.fork() == 0:
    try:
        os.execve(fd, ["any", "name"], {})
    except OSError as e:
        print(e.strerror, flush=True)
print(os.wait()[1])
END
cp /bin/true true; printf '#!/bin/cat\nits text\n' >script; chmod +x script; python3 f.py; ls
""",
    "environment": r"""
cat >c.c <<'END'
#include <stdio.h>
#include <stdlib.h>
int main(int c, char **v) { printf("%s %s %d\n", v[0], getenv("X") ? getenv("X") : "-", c); return 0; }
END
gcc -o c c.c; X=1 ./c; env -i X=2 ./c; (exec -a renamed ./c 1 2); env X=$(printf 'z%.0s' $(seq 1000)) ./c | wc -c; ./c $(seq 20000) | wc -c; getconf ARG_MAX >/dev/null; X=$(printf '%0131000d' 1) ./c | wc -c; X=$(printf '%0132000d' 1) ./c; ulimit -s 256; ./c $(seq 30000); echo $?; cat /proc/self/comm; cp /bin/cat mycat; ./mycat /proc/self/comm; ./mycat /proc/self/cmdline | tr '\0' ' '; readlink /proc/self/exe; cp $(readlink -f /bin/readlink) rl; ./rl /proc/self/exe | sed "s,$PWD,,"; (cd /; $OLDPWD/rl /proc/self/exe) | sed "s,$PWD,,"; ./mycat /proc/self/maps | grep -c mycat >/dev/null && ./mycat /proc/self/maps | grep mycat | awk '{print $6}' | sort -u | sed "s,$PWD,,"
(ulimit -c 0; printf '#include <stdlib.h>\nint main(void) { abort(); }' >a.c; gcc -o a a.c; ./a; echo $?) 2>/dev/null; nice -n 5 ./c; setsid ./c; timeout 5 ./c; env ./c; nohup ./c 2>/dev/null; sh -c './c & wait'; echo ./c | sh; echo 'exec ./c in file' >f; sh f; find . -name c -exec {} found \; ; echo 1 2 | xargs ./c; command ./c; time -p ./c 2>/dev/null; stdbuf -oL ./c; ./c | ./mycat; chroot / ./c 2>/dev/null; [ -x /bin/setarch ] && setarch -R ./c
""",
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_script(same: Same, name: str) -> None:
    same(f"{SCRIPTS[name]}\nexit 0", "gcc")


def test_noexec_mount(umvm_run: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    body = f"cd {tmp_path}/m; cp /bin/true t; ./t; echo $?; printf '#!/bin/sh\n' >s; chmod +x s; ./s; echo $?; sh s; echo $?"
    result = umvm_run(body, mounts=[f"memory:none:{tmp_path}/m:noexec"])
    assert result.stdout == "126\n126\n0\n", result
    assert result.stderr.count("Permission denied") == 2
    assert os.listdir(tmp_path / "m") == []


def test_first_guest_is_served(umvm_run: Callable[..., Result], tmp_path: Path) -> None:
    """`umvm run` itself executes through the view: a program that only the mount has."""
    (tmp_path / "src").mkdir()
    (tmp_path / "m").mkdir()
    script = tmp_path / "src" / "hello"
    script.write_text('#!/bin/sh\necho "$0 says $1"\n')
    script.chmod(0o755)
    mounts = [f"passthrough:{tmp_path}/src:{tmp_path}/m"]
    where = tmp_path / "m"
    result = umvm_run([str(where / "hello"), "hi"], mounts=mounts)
    assert result.stdout == f"{where}/hello says hi\n", result
    result = umvm_run(["hello", "path"], mounts=mounts, options=["--env", f"PATH={where}:/bin"])
    assert result.stdout == f"{where}/hello says path\n", result
    result = umvm_run(["./hello", "here"], mounts=mounts, options=["-C", str(where)])
    assert result.stdout == "./hello says here\n", result
    script.chmod(0o644)
    assert umvm_run([str(where / "hello")], mounts=mounts).status == 126
    assert umvm_run([str(where / "none")], mounts=mounts).status == 127
