"""coreutils, findutils and diffutils on served files."""

from __future__ import annotations

import pytest
from same import Same

SCRIPTS = {
    "copies": r"""
mkdir -p s/d; echo one >s/a; echo two >s/d/b; ln -s a s/l; ln s/a s/h; mkfifo s/p; chmod 640 s/a; chmod 711 s/d
touch -d '2001-02-03 04:05:06.789' s/a s/d/b; touch -h -d 2002-02-02 s/l; touch -d 2003-03-03 s/d
setfattr -n user.note -v text s/a 2>/dev/null
cp -a s t; look() { (cd $1; find . -printf '%P %y %m %n %T@ %l\n' | sort; find . -type f -printf '%s %P\n' | sort); }
look s >s.txt; look t >t.txt; diff s.txt t.txt && wc -l <s.txt; getfattr -d t/a 2>/dev/null
[ t/a -ef t/h ] && echo linked; cp -r s r; [ r/a -ef r/h ] || echo not linked; cp -rl s k; [ s/a -ef k/a ] && echo linked
cp -rs $PWD/s y; readlink y/d/b | sed "s,$PWD,,"; cp s/a s/d x 2>&1; mkdir x; cp -v s/a s/d/b x; cp -n s/d/b x/a; cat x/a
cp -u s/a x/b; cat x/b; cp --backup=numbered s/a x/b; ls x; cp --parents s/d/b x; find x | sort; cp -L s/l x/L; cat x/L
cp s/a s/a; cp -f s/a x/none/z; cp s x/dir; cp --reflink=auto s/a x/c; cmp s/a x/c; cp --reflink=always s/a x/c; cp -t x s/h
cp --sparse=always s/a x/sp; cp -p s/a x/pre; stat -c '%a %Y' x/pre; cp --attributes-only s/a x/att; stat -c '%s' x/att
cat s/a | cp /dev/stdin x/fromstdin; cat x/fromstdin; cp -d s/l x/l2; readlink x/l2; cp -H s/l x/l3; cat x/l3; cp s/p x 2>&1 & echo data >s/p; wait; cat x/p
""",
    "moves": r"""
mkdir a b; echo 1 >a/f; mv a/f b/g; ls a b; mv b/g f; mv -v f b; mv b c; ls c; mv c/f c/f; mv c c/d; mv none x; mkdir d; mv c d; ls d
echo x >x; mv x d/c; mv -n d/c/x d/c/f; cat d/c/f; mv -T d e; mkdir full; touch full/z; mkdir e2; mv -T e2 full; mv -T e full; ls e2
echo i >i; echo j >j; mv -f i j; cat j; mv -b j e/c/f; ls e/c; mv --backup=t e/c/f e/c/x; ls e/c; ln -s j l; mv l m; readlink m
out=$(mktemp -d); mv e $out/; find $out | sed "s,$out,," | sort; mv $out/e back; rmdir $out; find back | sort; mv -t back j m; ls back
touch r1 r2; chmod 400 r2; mv -f r1 r2; stat -c %a r2; rename() { mv "$1" "$2"; }; rename r2 "n l"; ls; exch() { mv --exchange $1 $2 2>/dev/null || echo unknown; }; mv back/c/.. x; mv . y
""",
    "links": r"""
echo x >f; ln f g; stat -c '%h' f; ln -s f s; ln -s none d; ln s t; readlink t; ln -L s u; stat -c %F u; ln f g; ln -f f g; ln -sf f s
ln -sfn / s; readlink s; mkdir dir; ln dir x; ln -s $PWD/f dir/abs; cat dir/abs; ln -sr f dir/rel; readlink dir/rel; ln -st dir /a /b; ls dir
readlink -f dir/rel | sed "s,$PWD,,"; realpath --relative-to=dir f; realpath -m none/../x | sed "s,$PWD,,"; readlink -e d || echo none; ln -s loop loop
cat loop; ls loop; cat d; cat f/x; ln -s x/ y; unlink y; unlink dir; link f lk; link none lk2; rm -r dir; ls; ln -s "$(printf %4095s)" long | cut -c1-10; ln -s '' e; ln f ''
""",
    "listing": r"""
mkdir -p d/e; touch -d 2020-01-02 d/f; echo hello >d/g; ln -s f d/l; mkfifo d/p; chmod 4755 d/g; chmod 1777 d/e; ln d/g d/h; touch -d 2021-01-01 d/g d/e d/p d d/.; touch -hd 2022-02-02 d/l
ls; ls -a d; ls -A d; ls -F d; ls -p d; ls -R d; ls -m d; ls -x d; ls -S d; ls -t d; ls -rt d; ls -v d; ls -X d; ls -Q d; ls -b d; ls -d d/*; ls -1 d | head -1
ls -lR --time-style=+%F d | awk '{ if ($1 ~ /^d/) $5 = "-"; $1 = $1; if ($1 != "total") print }'; ls -ln d/f | awk '{print $3, $4}' | sed "s/$(id -u) $(id -g)/me/"; ls -lh d/g | cut -c1-10
ls -i d | awk '{print $2}'; [ $(ls -i d/g | cut -d' ' -f1) = $(ls -i d/h | cut -d' ' -f1) ] && echo same inode; ls -lZ d >/dev/null && echo ok; ls -ls d/f | cut -c1; ls none d/f; ls -l --author d >/dev/null
ls --color=always d | cat -v; ls --group-directories-first d; ls -lL d/l --time-style=+ | cut -c1; ls -U d | sort; dir d; vdir d | wc -l; ls d/f/; ls -l d/l/; ls --full-time d/f | awk '{print $6, $7}'; stat -f -c %T . >/dev/null
""",
    "attributes": r"""
echo hi >f; mkdir d; stat -c '%n %a %F %h %U' f d | sed "s/$(id -un)/me/"; touch -d '1999-12-31 23:59:59.123456789' f; stat -c '%y' f; touch -a -d 1990-01-01 f; stat -c '%x %y' f
touch -m -d @0 f; stat -c '%X %Y' f; touch -r f g; stat -c '%X %Y' g; touch -c none; ls none; touch -d @-1 f; stat -c %Y f; touch -d @4000000000 f; stat -c %Y f; touch d/x d/y; touch none/x
stat -c %Z f >z1; sleep 0.02; chmod 600 f; stat -c %.9Z f >z2; chmod -R u=rwX,go=rX d; stat -c '%n %a' d d/*; chmod +x f; stat -c %a f; chmod 7777 f; stat -c %a f; chmod u-s,g-s,-t f; stat -c %A f
chmod --reference=d/x f; stat -c %a f; chmod 644 none; chmod 9 f; umask 077; touch n; mkdir m; stat -c %a n m; chmod =r n; stat -c %a n; truncate -s 10 t; stat -c '%s' t; truncate -s +5 t; truncate -s %8 t
stat -c %s t; truncate -s -3 t; stat -c %s t; truncate -s '<4' t; stat -c %s t; truncate -s 1T big; stat -c '%s' big; truncate -s -1T big; stat -c %s big; truncate -cs 1 none; truncate -s 1 d; rm -f big
chown $(id -u):$(id -g) f && echo chowned; chown 0:0 f 2>/dev/null; echo $? $(( $(id -u) == 0 )) >/dev/null; chgrp $(id -g) f; chown -h $(id -u) f; chown nosuchuser f; chown -R $(id -u) d && echo ok; sync f && sync d && sync -f . && sync -d f && echo synced
test -O f && echo mine; test -G f && echo group; stat -Lc %F d/.. ; file -b f 2>/dev/null; stat none; stat -c '%d' f >d1; stat -c '%d' d/x >d2; cmp d1 d2; stat -c %b f | awk '{print ($1 > 0)}'; stat -c %B f; stat -c %t,%T f; stat -c '%W' f | awk '{print ($1 > 0)}'
""",
    "blocks": r"""
seq 1 2000 >f; dd if=f of=g bs=512 status=none; cmp f g; dd if=f of=g bs=100 skip=3 seek=5 count=2 conv=notrunc status=none; md5sum g; printf XYZ | dd of=g bs=1 seek=10 conv=notrunc status=none; head -c 20 g
dd if=f of=s bs=1 seek=100000 count=1 status=none; stat -c %s s; dd if=/dev/zero of=z bs=64K count=16 conv=sparse status=none; stat -c '%s' z; dd if=f of=a oflag=append conv=notrunc status=none; dd if=f of=a oflag=append conv=notrunc status=none; wc -c a
dd if=none of=x; dd if=f of=x conv=excl status=none; dd if=f of=x conv=excl status=none; dd if=f of=y conv=ucase,fsync bs=4k status=none; dd if=f iflag=fullblock bs=7 count=3 status=none; dd if=f of=w bs=1k skip=100000 status=none; stat -c %s w; dd if=f of=f2 ibs=3 obs=1000 conv=swab,fdatasync status=none; md5sum f2
head -c 5 f; tail -c 5 f; tail -n 2 f; tail -n +1999 f; tail -c +8890 f; head -n -1998 f; split -l 700 f part; wc -l part*; cat part* | cmp - f; split -b 1000 -d -a 3 f num; ls num* | wc -l; split -n 3 f third; cat third* | cmp - f; csplit -s f 100 '/^500$/'; wc -l xx*
shred -x -n 1 f2; stat -c %s f2; shred -u -n 1 f2; ls f2; od -c g | head -2; fallocate -l 10000 fa; stat -c %s fa; fallocate -l 5 -o 20000 fa; stat -c %s fa; fallocate -n -l 100 -o 50000 fa; stat -c %s fa; fallocate -p -l 100 -o 0 fa; echo $?; tac f | head -1; rev f | head -1; nl f | head -1
shuf -i 1-9 | sort | tr -d '\n'; sort -n -r f -o f; head -1 f; sort -T . -S 10K f | md5sum; sort -m f f | wc -l; uniq -c f | wc -l; comm -12 <(sort f) <(sort g) | wc -l; join <(seq 3) <(seq 2 4); cut -c1 f | sort | uniq -c; paste -sd+ <(seq 4); expand f | fold -w 3 | wc -l; truncate -s 0 f; wc f; cksum g; sha256sum g | sha256sum -c - || true
""",
    "directories": r"""
mkdir -p a/b/c; mkdir a; mkdir none/x; mkdir -m 700 m; stat -c %a m; mkdir -p -m 750 m/n/o; stat -c '%n %a' m/n/o; rmdir a; rmdir -p a/b/c; ls; rmdir m/n/o/; touch f; rmdir f; mkdir f; mkdir d/; rmdir d/.; rmdir d
install -d -m 711 i/j; stat -c '%n %a' i/j; echo x >x; install -m 555 x i/y; stat -c %a i/y; install -D x p/q/r; cat p/q/r; install -b x i/y; ls i; install -t p x; ls p; install -p -m 644 x pp; [ x -nt pp ] || [ pp -nt x ] || echo same time; install -s x y 2>/dev/null; ls y
t=$(mktemp -p . -t tmp.XXXXXX); stat -c '%a %s' $t; t=$(mktemp -d ./dir.XXXX); stat -c '%a' $t; mktemp ./x.XX.XXXX.txt | wc -c; TMPDIR=$PWD mktemp | grep -c "$PWD"; rm -rf $t; rm -v f; rm f; rm -f f; rm -r none; rm -d i; rm -rf i p; rm -I m -r; ls | grep -v '\.'; rm -rf .; rm -rf ..; rm -rf ./; rm ''; mkdir e; rm e
mkdir -p deep; (for i in $(seq 40); do mkdir "$(printf 'n%.0s' $(seq 150))" && cd n*; done; echo bottom >f; /bin/pwd 2>&1 | wc -c | awk '{print ($1 > 6000)}'); find deep -type f | wc -c | awk '{print ($1 > 6000)}'; du -a deep | wc -l; rm -rf deep; ls -d deep
mkdir many; (cd many; seq 2000 | xargs touch); ls many | wc -l; (cd many; ls | head -1000 | xargs rm); ls many | wc -l; find many -type f -delete; rmdir many; du -s none; du -sb x; du -ab --apparent-size x e | awk '{print $2}'; df . | tail -1 | awk '{print NF}'; df -i . >/dev/null; df --output=target . | tail -1 | grep -c .; pathchk x; basename $PWD; tree 2>/dev/null | tail -1
""",
    "following": r"""
echo first >log; tail -n1 -f log --pid=$$ >seen & t=$!; sleep 0.3; echo second >>log; seq 3 >>log; for i in $(seq 50); do grep -q 3 seen && break; sleep 0.1; done; kill $t; wait $t 2>/dev/null; cat seen
tail -n +1 -s 0.1 --max-unchanged-stats=2 -F log >seen2 2>/dev/null & t=$!; sleep 0.3; mv log log.1; echo rotated >log.2; mv log.2 log; for i in $(seq 50); do grep -q rotated seen2 && break; sleep 0.1; done; kill $t; wait $t 2>/dev/null; sort -u seen2
tail -f --max-unchanged-stats=2 -s 0.1 ---disable-inotify log >seen3 & t=$!; sleep 0.3; echo more >>log; for i in $(seq 50); do grep -q more seen3 && break; sleep 0.1; done; kill $t; wait $t 2>/dev/null; cat seen3
(sleep 0.3; echo tail end) | tee -a log | cat; stdbuf -o0 cat log; timeout 5 sh -c 'until grep -q end log; do sleep 0.1; done'; yes | head -100000 | wc -l; yes | head -c 300000 >y; wc -c y; nohup sh -c 'echo detached' >nh 2>/dev/null; cat nh; cat log log >>log2; cat log2 >>log2; echo $?
""",
    "find": r"""
mkdir -p a/b/c d/.e; touch a/1 a/b/2 a/b/c/3 d/.e/4 'd/with space' $'d/new\nline'; ln -s ../a d/l; touch -d '3 days ago' a/1; echo data >a/b/2; chmod 600 a/b/2; mkfifo d/p; ln a/b/2 a/b/two
find . | sort | cat -v; find -L . -maxdepth 3 | sort | cat -v; find . -type f -size -1 | sort | cat -v; find . -type l; find . -type p; find . -mtime +1; find . -newer a/1 -type f -name '[0-9]'| sort; find . -perm 600 | sort; find . -empty -type f | wc -l
find . -links 2 -type f | sort; find . -samefile a/b/two | sort; find . -name '*space' -print0 | xargs -0 ls; find . -type f -print0 | xargs -0 -n1 | wc -l; find a -depth | tail -1; find a -name b -prune -o -print | sort; find . -regex '.*/[0-9]' | sort; find a -exec echo {} + | tr ' ' '\n' | sort; find a -execdir echo {} \; | sort
find a/b -type f -printf '%f %s %m %y %d %h %P\n' | sort; find . -xdev | wc -l; find . -fstype none; find a -inum $(stat -c %i a/1) | sort; find -L . -xtype l; find . -user $(id -un) | wc -l; find none; find a -mindepth 2 | sort; find a -quit; find a -type d -empty; find d -lname '*a'; find a -writable -readable | sort; find a -executable | sort
find a -name 3 -ok echo {} \; </dev/null; find . -name 1 -fprint out; cat out; find a -type f -exec grep -l data {} + | sort; find . -type f | xargs -d '\n' -P 4 -n 1 basename 2>/dev/null | sort | head -3; echo a b c | xargs -n 2 echo; seq 10 | xargs -I{} sh -c 'echo {} >x{}'; cat x*; seq 30000 | xargs | wc -l; find a -delete; find . -name '*' -type d | sort
""",
    "differences": r"""
mkdir a b; seq 10 >a/f; seq 10 | sed 's/5/five/; 8d' >b/f; echo only >a/only; printf 'x\n' >a/nl; printf 'x' >b/nl; diff a/f b/f; diff -u a/f b/f | tail -n +3; diff -rq a b; diff -r a b; cmp a/f b/f; cmp a/f a/f; cmp -l a/nl b/nl; diff -y -W 30 a/f b/f; sdiff -s a/f b/f | wc -l; diff3 a/f b/f a/f
diff -ruN a b | sed -E 's/\t[0-9].*//' >p; cat p; cp -r a c; (cd c && patch -p1 <../p); diff -r b c && echo patched; (cd c && patch -R -p1 <../p); diff -r a c && echo back; patch -p0 --dry-run a/f <p; patch a/f none; (cd c; patch -p1 -b <../p; ls); (cd c; patch -p1 -N <../p; ls); patch -o out a/f <<'END'
1c
ONE
.
END
head -1 out; comm <(sort a/f) <(sort b/f) | wc -l; diff a none; diff a/f - <b/f | head -1; colordiff /dev/null /dev/null 2>/dev/null; ls -A
""",
}
TOOLS = {"differences": ("patch", "diff"), "attributes": ("touch",)}


@pytest.mark.parametrize("name", SCRIPTS)
def test_script(same: Same, name: str) -> None:
    same(f"{SCRIPTS[name]}\nexit 0", *TOOLS.get(name, ()))
