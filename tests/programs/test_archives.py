"""Archivers, compressors and copiers on served trees."""

from __future__ import annotations

import pytest
from same import Same

TREE = r"""
mkdir -p t/d/e; echo one >t/a; seq 3000 >t/d/b; ln t/a t/hard; ln -s d/b t/soft; mkfifo t/fifo
printf 'x\0y' >'t/d/with space'; : >t/empty; chmod 4711 t/d/b; chmod 1770 t/d/e
truncate -s 300000 t/sparse; printf end | dd of=t/sparse bs=1 seek=200000 conv=notrunc status=none
touch -d '2001-02-03 04:05:06' t/a t/d/b t/sparse t/empty t/fifo 't/d/with space'
touch -h -d 2002-02-02 t/soft; touch -d 2003-03-03 t/d/e t/d t
look() { (cd $1; find . -printf '%P %y %m %n %TY%Tm%Td%TH%TM %l\n' | sort; find . -type f | sort |
    while read -r f; do sha1sum "$f"; done); }
look t >want
"""
SCRIPTS = {
    "tar": TREE
    + r"""
tar cf a.tar t; tar tf a.tar | wc -l; mkdir x; tar xpf a.tar -C x; look x/t | diff want - && echo equal
tar --numeric-owner --sort=name -cf b.tar t; tar tvf b.tar | awk '{print $1, $3, $6}' | sort; tar df a.tar && echo no difference
echo more >>t/a; tar df a.tar | sed 's/t.hard/t\/a/' | sort; tar rf a.tar t/a; tar uf a.tar t/empty; tar tf a.tar | wc -l; tar --delete -f b.tar t/fifo; tar tf b.tar | grep -c fifo
tar -czf - t | tar -xzf - -O t/empty t/d/b | wc -l; tar -cJf c.tar.xz t/d; tar -tJf c.tar.xz | sort; tar --zstd -cf c.tar.zst t/d; tar -xf c.tar.zst -C x; tar -caf c.tgz t; gzip -l c.tgz | tail -1 | awk '{print ($2 > 300000)}'
tar -Scf s.tar t/sparse; [ $(stat -c %s s.tar) -lt 100000 ] && echo sparse kept; tar xf s.tar -C x; cmp t/sparse x/t/sparse; tar -cf - t/d | (cd x; rm -r t; tar xf -; find . | sort); tar xf a.tar -C x t/none; tar -xf a.tar -C x --strip-components=1; ls x
tar -cf m.tar -M -L 200 t/none </dev/null 2>/dev/null; tar cf a.tar --exclude='*b' t; tar tf a.tar | grep -c b; (cd t; tar cf ../n.tar --transform='s,^,pre/,' a d); tar tf n.tar | sort; tar --remove-files -cf r.tar t/d/e; ls t/d; tar xkf a.tar 2>&1 | sed 's,t/hard,t/a,' | sort; echo ${PIPESTATUS[0]}; tar -xf a.tar --overwrite; echo $?
""",
    "tar with attributes": r"""
mkdir t; echo x >t/f; setfattr -n user.one -v 1 t/f || exit 0; setfattr -n user.two -v "$(printf '%0500d' 7)" t; tar --xattrs -cf a.tar t; mkdir x; tar --xattrs -xf a.tar -C x; getfattr -d x/t/f x/t
cp -a t y; getfattr -d -m - --only-values y/f; cp -r t z; getfattr -d z/f; cp --preserve=xattr t/f g; getfattr -n user.one g; setfattr -x user.one g; getfattr -d g; getfattr -n user.none g; mv g t; rsync -aX t/ w; getfattr -d w/f; setfattr -n user.x f -v y; setfattr -n nonsense -v x t/f
""",
    "cpio": TREE
    + r"""
find t -depth -print0 | cpio -0o -H newc --quiet >a.cpio; cpio -t --quiet <a.cpio | sort; mkdir x; (cd x; cpio -idm --quiet <../a.cpio); tidy() { grep -Ev '^(soft)? . |^d(/e)? d'; }; look x/t | tidy | diff <(tidy <want) - && echo equal
mkdir p; find t | cpio -pdm --quiet p; look p/t | tidy | diff <(tidy <want) - && echo equal; cpio -i --quiet --to-stdout t/a t/hard <a.cpio; echo t/a | cpio -oA -F a.cpio -H newc --quiet; cpio -it --quiet <a.cpio | grep -c t/a
""",
    "rsync": TREE
    + r"""
rsync -a -H t/ x; look x | diff want - && echo equal; rsync -aHi t/ x; echo changed >>t/d/b; touch t/new; rm t/empty; rsync -aHi --delete t/ x | sort; look t >want; look x | diff want - && echo equal; rsync -aHn --itemize-changes t/ x
rsync -aHc --inplace t/ x; rsync -a --no-whole-file --block-size=512 t/d/b x/d/b; seq 2999 -1 1 >t/d/b; rsync -a --no-whole-file --stats t/ x | grep -c 'Matched data'; cmp t/d/b x/d/b; rsync -aS t/sparse y; cmp t/sparse y; rsync -a --link-dest=$PWD/x t/ z; [ x/d/b -ef z/d/b ] && echo linked
rsync -a --backup --suffix=.old --exclude=fifo t/a x/; rsync -r --existing t/ x; rsync -a --remove-source-files t/d/ moved; find t -type f | sort; find moved -type f | sort; rsync -a none x; rsync -R -a ./t/a rel; find rel | sort; rsync -z --partial t/a x/zz; cat x/zz
""",
    "zip": TREE
    + r"""
rm t/fifo; look t >want; zip -qry a.zip t; unzip -qt a.zip; unzip -l a.zip | tail -1 | awk '{print $1, $2}'; mkdir x; unzip -q -d x a.zip; (cd t; find . -type f -exec cksum {} +) | sort >1; (cd x/t; find . -type f -exec cksum {} +) | sort >2; cmp 1 2 && echo equal; readlink x/t/soft; stat -c '%a %Y' x/t/d/b
echo upd >t/a; zip -qu a.zip t/a; unzip -p a.zip t/a; zip -qd a.zip t/empty; unzip -l a.zip | grep -c empty; zip -qm a.zip t/empty; ls t; (cd x; unzip -qo ../a.zip 't/d/*'; unzip -qn ../a.zip; find . | wc -l); zip -q - t/a | wc -c | awk '{print ($1 > 100)}'; unzip -q none; zip -sf a.zip | wc -l
""",
    "compressors": r"""
seq 1 20000 >f; cp f g; cksum f >sum; touch -d 2001-01-01 f; chmod 640 f; for c in gzip bzip2 xz zstd; do command -v $c >/dev/null || continue
$c -k f; ls f.*; $c -t f.* && echo ok; $c -dc f.* | cmp - g && echo same; rm f; [ $c = zstd ] && $c -q -d f.*; [ $c = zstd ] || $c -d f.*; stat -c '%n %a %Y' f; rm -f f.*; $c <f | $c -dc | cmp - g; cp f "in $c"; $c -q "in $c"; ls; rm in*; $c none 2>/dev/null; echo $?; $c -kf f; $c -k f </dev/null 2>/dev/null; echo $?; rm f.*
done; gzip -c f >f.gz; zcat f.gz | tail -1; zgrep -c 99 f.gz; gzip -l f.gz | tail -1 | awk '{print $1}'; cat f.gz f.gz | gunzip | wc -l; zdiff f.gz g && echo equal; zless f.gz </dev/null | wc -l; xz -T2 -0 -c f | xz -l - 2>/dev/null; xzcat none.xz; split -b 5000 f.gz p.; cat p.* | zcat | cksum; cat sum; pigz --version 2>/dev/null | wc -l
""",
    "packages": r"""
umask 022; mkdir -p p/DEBIAN p/usr/share/doc/thing p/usr/bin; printf 'Package: thing\nVersion: 1.0\nArchitecture: all\nMaintainer: A <a@b.c>\nDescription: a thing\n for tests\n' >p/DEBIAN/control; printf '#!/bin/sh\necho post\n' >p/DEBIAN/postinst; chmod 755 p/DEBIAN/postinst
printf '#!/bin/sh\necho the thing runs\n' >p/usr/bin/thing; chmod 755 p/usr/bin/thing; ln -s thing p/usr/bin/alias; echo doc >p/usr/share/doc/thing/README; dpkg-deb --root-owner-group -b p thing.deb; dpkg-deb -f thing.deb; dpkg-deb -c thing.deb | awk '{print $1, $2, $6, $7, $8}'
mkdir x; dpkg-deb -x thing.deb x; find x | sort; x/usr/bin/alias; dpkg-deb -e thing.deb e; ls e; dpkg-deb --fsys-tarfile thing.deb | tar t | sort; dpkg-deb -R thing.deb raw; diff -r p raw && echo equal; ar t thing.deb; ar x thing.deb; ls *.xz *.zst 2>/dev/null; dpkg-deb -I thing.deb postinst; dpkg-deb -b none 2>&1; dpkg-deb -W thing.deb
""",
}
TOOLS = {
    "tar": ("tar", "xz", "zstd"),
    "tar with attributes": ("tar", "setfattr", "rsync"),
    "packages": ("dpkg-deb", "ar"),
    "compressors": ("gzip", "xz"),
    "zip": ("zip", "unzip"),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_script(same: Same, name: str) -> None:
    same(f"{SCRIPTS[name]}\nexit 0", *TOOLS.get(name, (name,)))
