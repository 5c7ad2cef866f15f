"""Shells: what scripts do with files, descriptors and processes."""

from __future__ import annotations

import pytest
from same import Same

SCRIPTS = {
    "redirections": r"""
echo one >f; echo two >>f; cat f; cat <f >g; cmp f g && echo same
set -C; echo three >f || echo refused; set +C; echo three >|f; cat f
{ echo out; echo err >&2; } >both 2>&1; cat both
echo x 2>/dev/null >&3 || echo "no descriptor"
cat >>f <<END
in a here-document: $((6 * 7))
END
cat <<'END' >>f
$not expanded
END
cat <<<"a string" >>f; cat f; wc -l <f
cat <none || echo missing; echo >d/none || echo missing; echo x >. || echo "a directory"
cat f - <g </dev/null | tail -1
""",
    "descriptors": r"""
exec 3>log 4<>both 5>&1; echo to3 >&3; echo to4 >&4; echo to5 >&5; exec 3>&-; echo x >&3
cat log both; exec 4>&-
exec 6<<<$'line 1\nline 2\nline 3'; read -r a <&6; read -r b <&6; echo "$a,$b"; cat <&6; exec 6<&-
exec {n}>numbered; echo hello >&$n; exec {n}>&-; cat numbered
exec 7>>appended; (echo child >&7); echo parent >&7; cat appended
seq 5 >s; exec 8<s; head -c 2 <&8; head -c 2 <&8; (read -r x <&8; echo "child $x"); cat <&8; exec 8<&-
while read -r line; do echo "got $line"; done <s | tail -1
exec 9<>s; read -r x <&9; echo X >&9; exec 9>&-; cat s
mkfifo p; (echo through the pipe >p &); cat p; exec 9<>p; echo again >&9; read -r x <&9; echo "$x"
echo /dev/fd: $(cat /dev/fd/3 3<s | head -1); echo w >/dev/fd/1; cat /dev/stdin <s | tail -1
""",
    "substitution": r"""
diff <(seq 3) <(seq 2 4); cat <(echo in) >f; echo "$(<f)"; seq 100 >f
paste <(head -2 f) <(tail -2 f); tee >(wc -l >count) <f | tail -1; sleep 0.3; cat count
x=$(cat f | grep 7 | tr '\n' ,); echo "$x"; echo `cat none || echo none`
""",
    "globs": r"""
mkdir -p a/b/c d .hidden; touch a/1.txt a/2.txt a/b/3.txt a/b/c/4.txt 'sp ace' 'new
line' $'\xff\xfe' ü [x] .dot '*'
echo *; echo a/*.txt; echo */; echo .[!.]*; echo [[]x]; echo a/[12].*; ls -d ./*
shopt -s globstar nullglob dotglob extglob; echo **/*.txt; echo **/; echo nothing*; echo *
echo !(a|d)/; echo a/+([0-9]).txt; for f in */*; do printf '<%s>' "$f"; done; echo
rm -- *; find . | sort | cat -v
""",
    "directories": r"""
mkdir -p one/two/three; here=$PWD; cd one/two/three; echo "${PWD#$here}"; cd ..; echo "${PWD#$here}"
cd - >/dev/null; cd ../../..; [ "$PWD" = "$here" ] && echo back
pushd one >/dev/null; pushd two >/dev/null; echo "${#DIRSTACK[@]} ${PWD#$here}"; popd >/dev/null
echo "${PWD#$here}"; popd >/dev/null; ln -s one/two link; cd link; echo "${PWD#$here}"
pwd -P | sed "s,^$here,,"; cd ..; echo "${PWD#$here}"; cd -P link/..; echo "${PWD#$here}"; cd $here
cd none; cd link/none; echo x >file; cd file; cd one/two; mv ../two ../moved; /bin/pwd | sed "s,$here,,"
cd $here/one/moved; rm -r ../moved; /bin/pwd; ls; touch x; cd ..; ls
CDPATH=$here; cd one >/dev/null; echo "${PWD#$here}"; (cd /; echo "$PWD"); echo "${PWD#$here}"
cd /; cd $here; cd //; pwd; cd "$here/../${here##*/}/."; [ "$PWD" = "$here" ] && echo again
""",
    "tests": r"""
touch f e; echo x >f; mkdir d; ln -s f l; ln -s none dangling; ln f hard; mkfifo p; chmod 600 f
chmod 4755 e; chmod 1777 d; touch -d 2001-01-01 old
for x in f e l d dangling hard p none old; do for t in a b c d e f g h k p r s u w x L O G S N; do
    test -$t $x && printf $t; [[ -$t $x ]] && printf $t
done; echo " $x"; done
[ f -ef hard ] && echo same; [ f -nt old ] && echo newer; [ old -ot f ] && echo older
[ f -ef l ] && echo same; [ f -ef e ] || echo different; [ none -ot f ] && echo older
chmod 400 f; [ -w f ]; w=$?; [ $UID = 0 ] && w=0; [ $w = $([ $UID = 0 ]; echo $?) ] && echo writable as it should
[ -t 0 ] || echo no terminal; [ -w /etc/passwd ] ; echo $?; [ -w /proc/version ]; echo $?
""",
    "traps": r"""
exec 2>/dev/null; trap 'echo exit $? >>log; cat log' EXIT; trap 'echo usr1 >>log' USR1; trap '' USR2
kill -USR1 $$; kill -USR2 $$; (trap 'echo sub >>log' EXIT); (exit 3); echo $? >>log
trap 'echo err $? >>log' ERR; false; trap - ERR; trap 'echo int >>log' INT; kill -INT $$
sleep 30 & kill $!; wait $! 2>/dev/null; echo $? >>log; { sleep 0.1; kill -USR1 $$; } & wait $!; echo waited >>log
wait; bash -c 'trap "echo child term >>log; exit 4" TERM; kill $$; sleep 5'; echo $? >>log
""",
    "jobs": r"""
for i in 1 2 3 4 5 6 7 8; do (echo $i >j$i; exit $i) & pids="$pids $!"; done
for p in $pids; do wait $p; printf '%s ' $?; done; echo; cat j*; sleep 0.1 & wait -n; echo $?
coproc cat; echo to the coprocess >&${COPROC[1]}; read -r x <&${COPROC[0]}; echo "$x"; kill $COPROC_PID
(for i in 1 2 3; do echo a$i >>shared; done) & (for i in 1 2 3; do echo b$i >>shared; done) &
wait; sort shared; timeout 0.2 sleep 5; echo $?; set -o pipefail; false | true | cat; echo $? ${PIPESTATUS[@]}
""",
    "files": r"""
printf 'a b\nc d\n' >f; while IFS=' ' read -r x y; do echo "$y$x"; done <f
mapfile -t lines <f; echo "${#lines[@]} ${lines[1]}"; printf '%s\n' {1..20} >n; sed -i 's/^1/one/' n; head -3 n
awk '{s += $1} END {print s}' n; awk '{print > ("out" $1 % 3)}' n; wc -l out*; sort -r -o n n; head -2 n
grep -rn one . | sort; grep -c . n; tr a-z A-Z <f | tee f2; cmp f f2; source /dev/stdin <<<'echo sourced'
echo 'echo arg $1; return 5' >lib.sh; . ./lib.sh x; echo $?; umask 027; touch u; mkdir du; stat -c %a u du
umask 0; touch u0; stat -c %a u0; (ulimit -f 1; head -c 5000 /dev/zero >big; echo $?) 2>/dev/null; stat -c %s big; type -p ls
printf 'exec_me() { echo function; }\n' >fn; . ./fn; exec_me; command -v nothing_like_this || echo none
: >empty; wc -c <empty; echo $RANDOM >r; [ -s r ] && echo random; history -c; hash -r
""",
}


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS.keys())
def test_bash(same: Same, script: str) -> None:
    same(f"{script}\nexit 0")


@pytest.mark.parametrize("shell", ["dash", "busybox"])
def test_other_shells(same: Same, shell: str) -> None:
    script = SCRIPTS["redirections"].replace("set -C", ":").replace("set +C", ":")
    script = script.replace("<<<", "<").replace('"a string"', "g")
    script += "seq 5 >s; exec 8<s; read x <&8; (read y <&8; echo $x $y); cd /; echo $OLDPWD; exit 0"
    if shell == "busybox":
        same(f"busybox sh -c '{script}'".replace("'END'", "END"), "busybox")
    else:
        same(script, shell, shell=shell)


def test_busybox_applets(same: Same) -> None:
    """A static program that executes itself: /proc/self/exe and argv[0]."""
    same(
        r"""
cp "$(command -v busybox)" . && ./busybox sh -c '
export PATH=$PWD; mkdir d; for a in ls cat cp mv rm ln wc sort find grep sed awk tar gzip stat; do
    ./busybox ln -s busybox $a; done
echo b >f; echo a >>f; sort f; cp f d/g; ls d; ln f h; mv h d; find d | sort; grep -r a d | sort
sed -i s/a/c/ f; cat f; awk "{print NR, \$0}" f; tar cf t.tar d f; tar tf t.tar | sort; gzip t.tar; ls *.gz
stat -c "%n %s %a %h" f; rm -r d; ls -d d; tar xzf t.tar.gz; wc -c d/*; busybox readlink -f d/../f >r; wc -l <r
busybox seq 1000 >part; busybox sha1sum part f; busybox wc part; busybox tail -n 2 part; busybox cmp f part; busybox diff f d/g
busybox dd if=f of=g bs=1 skip=1 count=2 2>/dev/null; cat g; busybox touch -d "2010-01-01 00:00:00" f
stat -c %Y f; busybox chmod 600 f; stat -c %a f; busybox vi --help >/dev/null 2>&1; busybox pwd >/dev/null && echo ok'
""",
        "busybox",
    )
