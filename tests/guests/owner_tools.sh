# run natively as root and inside: same output
PATH=$PATH:/usr/sbin:/sbin; export PATH; cd "$1" || exit 1; umask 022
mkdir p; cp -a /etc/passwd /etc/group p/; mkdir -p p/etc; mv p/passwd p/group p/etc/; printf '' > p/etc/shadow; printf '' > p/etc/gshadow; chmod 640 p/etc/shadow p/etc/gshadow; chgrp 42 p/etc/shadow p/etc/gshadow
useradd --prefix $PWD/p -u 3333 -U -m neu 2>&1 | grep -v "warning"; echo useradd $?
S() { stat -c '%n %u %g %a' "$@"; }
S p/etc/passwd p/etc/group p/etc/shadow p/etc/gshadow p/home/neu; grep neu p/etc/passwd p/etc/group
usermod --prefix $PWD/p -aG 33 neu 2>/dev/null; grep neu p/etc/group; S p/etc/group
groupadd --prefix $PWD/p -g 4444 grp; S p/etc/gshadow; userdel --prefix $PWD/p -r neu 2>/dev/null; echo $?; ls p/home
install -o 33 -g 44 -m 4755 /bin/true t1; install -d -o 5 -g 6 -m 2770 d1; touch d1/x; S t1 d1 d1/x
mkdir src; echo a > src/a; echo b > src/b; chown 33:44 src/a; chmod 6755 src/a; chown 1000:1000 src/b; ln -s a src/l; chown -h 7:8 src/l; mknod src/c c 1 3; chown 0:5 src/c; mkfifo src/f; chown 3:4 src/f; chown 9:9 src; ln src/b src/b2
cp -a src c1; rsync -aH src/ r1/; tar c --numeric-owner -f s.tar src; mkdir t; tar xpf s.tar -C t; (cd src; find . | cpio -o -H newc 2>/dev/null) > s.cpio; mkdir ci; (cd ci; cpio -idm --no-absolute-filenames < ../s.cpio 2>/dev/null)
for d in src c1 r1 t/src ci; do (cd $d; find . -printf '%p %m %U %G %y %n\n' | sort); done
setpriv --reuid=33 --regid=33 --clear-groups sh -c 'id; touch n; echo $?; cat p/etc/shadow >/dev/null; echo $?' 2>&1
chmod 1777 .; setpriv --reuid=33 --regid=33 --groups=42 sh -c 'id; touch n; cat p/etc/shadow; echo $?; rm -f d1/x 2>/dev/null; echo $?; rm -rf t1 2>/dev/null; echo $?' 2>&1; S n

cat > seq.py <<'P'
import os
# as sshd does: setgroups, setresgid, setresuid; then it can't go back
os.setgroups([33,44]); os.setresgid(1000,1000,1000); os.setresuid(1000,1000,1000)
print(os.getresuid(), os.getresgid(), os.getgroups())
for f in (lambda: os.setuid(0), lambda: os.seteuid(0), lambda: os.setgid(0), lambda: os.setgroups([0])):
    try: f(); print("no")
    except PermissionError: print("ok")
open("s1","w"); st=os.stat("s1"); print(st.st_uid, st.st_gid)
P
python3 seq.py
python3 - <<'P'
import os
# as apt does with _apt: setresuid(100), egid, then files of the sandbox
pid=os.fork()
if pid==0:
    os.setgroups([65534]); os.setegid(65534); os.setgid(65534); os.seteuid(100); os.setuid(100)
    print(os.getresuid(), os.getresgid()); open("aptf","w"); os._exit(0)
os.wait(); st=os.stat("aptf"); print(st.st_uid, st.st_gid)
P
chage -R $PWD/p -l root 2>&1 | head -2
