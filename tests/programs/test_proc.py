"""/proc and the tools that read it: guests see the view, never the files behind it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Result
from same import Same

SCRIPTS = {
    "links": r"""
exec 3<>f 4<. 5>>f 6</dev/null; mkdir d; mkfifo p; exec 7<>p; l() { readlink /proc/$1 | sed "s,$PWD,TOP,"; }; for n in 3 4 5 6 7; do l self/fd/$n; l $$/fd/$n; done; l self/cwd; cd d; l self/cwd; l $$/cwd; l self/root; cd ..; sleep 5 & l $!/cwd; l $!/fd/3; l thread-self/fd/3; l $$/task/$$/fd/4; l $$/task/$$/cwd
ls -l /proc/$!/fd | awk '{print $1, $9, $10, $11}' | grep -E '^l.* [3-7] ' | sed "s,$PWD,TOP,"; stat -Lc '%F' /proc/self/fd/3 /proc/self/fd/4 /proc/$$/cwd; echo text >f; cat /proc/self/fd/3; cat /dev/fd/3; ls /proc/self/fd/4 /dev/fd/4/ | head -3; ls /proc/$!/cwd/; ls /proc/self/cwd/d/../f; cat /proc/$$/cwd/f; echo more >>/proc/self/fd/5; cat f; echo x >/dev/fd/3; cat f
rm f; l self/fd/3; stat -Lc %h /proc/self/fd/3; mv d e; cd e; rmdir ../e; l self/cwd; ls /proc/self/cwd; cd ..; readlink -f /proc/self/fd/4 | sed "s,$PWD,TOP,"; realpath /proc/self/cwd | sed "s,$PWD,TOP,"; [ /proc/self/cwd -ef . ] && echo same; ln -s /proc/self/fd/3 link; cat link; stat -c %N link; find /proc/self/fd/ -name 3 -printf '%p %y %l\n' | sed "s,$PWD,TOP,"; find -L /proc/self/fd/4 -maxdepth 1 | sort; kill $!
""",
    "tables": r"""
exec 3<>f; echo 1234567890 >&3; cat /proc/self/fdinfo/3 | grep -E '^(pos|flags)'; read -r -n 3 x </proc/self/fd/3; echo $x; exec 4>>f; grep flags /proc/$$/fdinfo/4; exec 5<.; grep -c flags /proc/self/fdinfo/5; cat /proc/self/fdinfo/99; ls /proc/self/fdinfo | wc -l; ls /proc/self/task | wc -l; [ $(awk '/^mnt_id/ {print $2}' /proc/self/fdinfo/3) = $(awk '/^mnt_id/ {print $2}' /proc/self/fdinfo/5) ] && echo one mount
cp /bin/cat mycat; ./mycat /proc/self/maps | grep -v -e '\[' -e /usr -e /lib | awk '{print $6}' | sort -u | sed "s,$PWD,TOP,"; ./mycat /proc/self/smaps | grep -c mycat | awk '{print ($1 > 2)}'; ./mycat /proc/self/numa_maps | grep -c "$PWD/mycat" | awk '{print ($1 > 0)}'; python3 -c '
import mmap, os
f = open("mapped", "w+b"); f.write(b"x" * 9000); f.flush(); m = mmap.mmap(f.fileno(), 0); p = mmap.mmap(f.fileno(), 4096, mmap.MAP_PRIVATE, offset=4096)
for line in open("/proc/self/maps"):
    if "mapped" in line: w = line.split(None, 5); print(w[1], w[2], os.path.basename(w[5]), w[5].startswith(os.getcwd()), w[4] == str(os.fstat(f.fileno()).st_ino))
os.unlink("mapped"); print([l.split("/")[-1] for l in open("/proc/self/maps") if "mapped" in l])'; ls -l /proc/self/map_files >/dev/null 2>&1; cat /proc/self/comm; ./mycat /proc/self/comm; tr '\0' ' ' </proc/self/cmdline; cat /proc/self/stat | wc -w; cat /proc/$$/environ | tr '\0' '\n' | grep -c ^PATH=; cat /proc/self/limits | wc -l; grep -c . /proc/self/status | awk '{print ($1 > 40)}'; cat /proc/loadavg | wc -w; ls /proc | grep -c '^[0-9]' | awk '{print ($1 > 2)}'; cat /proc/filesystems | grep -c nodev | awk '{print ($1 > 5)}'
""",
    "listing open files": r"""
exec 2>/dev/null; command -v lsof >/dev/null && { exec 3>kept 4<.; sleep 5 & lsof -a -p $! -d 3,4,cwd -F n 2>/dev/null | grep ^n | sed "s,$PWD,TOP,"; o=$(lsof -w kept); awk '{print $1, $4}' <<<"$o" | sort -u; o=$(lsof -t -w kept); wc -w <<<"$o"; kill $!; wait 2>/dev/null; exec 3>&- 4<&-; }; command -v fuser >/dev/null && { echo >used; sleep 5 <used & sleep 0.1; fuser used 2>/dev/null | wc -w; fuser . 2>/dev/null | wc -w | awk '{print ($1 > 1)}'; fuser -k used >/dev/null 2>&1; { wait $!; echo $?; } 2>/dev/null; }; pwdx $$ | sed "s,$PWD,TOP,; s/^[0-9]*/N/"; ps -o comm= -p $$; pgrep -P $$ | wc -l; (exec -a odd sleep 3) & sleep 0.1; ps -o args= -p $!; kill $!
""",
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_as_on_the_host(same: Same, name: str) -> None:
    same(f"{SCRIPTS[name]}\nexit 0")


@pytest.fixture
def at(tmp_path: Path) -> Path:
    (tmp_path / "m n").mkdir()
    return tmp_path / "m n"


def test_the_mount_is_shown(umvm_run: Callable[..., Result], at: Path) -> None:
    body = f"""
cd {str(at)!r}; mkdir d; cd d
findmnt -n -o SOURCE,FSTYPE,OPTIONS -T . ; findmnt -n -o TARGET -T .; df --output=target,fstype . | tail -1
mountpoint -q .. && echo is a mount point; mountpoint -q . || echo is none; mountpoint -d .. ; stat -c '%Hd:%Ld' .; stat -c %m .
grep -c fuse.memory /proc/self/mounts /proc/mounts /etc/mtab /proc/self/mountinfo /proc/$$/mounts /proc/self/task/$$/mountinfo /proc/self/mountstats 2>&1
mount | grep fuse.memory; df -t fuse.memory | tail -1 | awk '{{print NF}}'; cat /proc/self/mounts | wc -l; wc -l </proc/self/mountinfo; python3 -c 'import os; print(os.path.ismount(".."), os.path.ismount("."))'
awk '/^mnt_id/ {{print $2}}' /proc/self/fdinfo/0 >/dev/null; exec 3>f; grep "^$(awk '/^mnt_id/ {{print $2}}' /proc/self/fdinfo/3) " /proc/self/mountinfo | awk '{{print $5}}'; find / -xdev -maxdepth 1 >/dev/null; find .. -fstype fuse.memory | sort; du -x .. | wc -l
"""
    result = umvm_run(["bash", "-c", body], mounts=[f"memory:source:{at}"])
    escaped, device = str(at).replace(" ", "\\x20"), r"0:10\d\d"
    lines = result.ok().splitlines()
    wanted = [
        r"source\s+fuse\.memory\s+rw",
        re.escape(str(at)) + "|" + re.escape(escaped),
        re.escape(str(at)) + r"\s+fuse\.memory",
        "is a mount point",
        "is none",
        device,
        device,
        re.escape(str(at)),
        "/proc/self/mounts:1",
        "/proc/mounts:1",
        "/etc/mtab:1",
        "/proc/self/mountinfo:1",
        r"/proc/\d+/mounts:1",
        ".*mountinfo.*",
        "/proc/self/mountstats:1",
        rf"source on {re.escape(str(at))} type fuse\.memory \(rw\)",
    ]
    for line, pattern in zip(lines, wanted, strict=False):
        assert re.fullmatch(pattern, line), (line, pattern, result)
    rest = lines[len(wanted) :]
    assert rest[-5:] == [str(at).replace(" ", "\\040"), "..", "../d", "../d/f", "2"], result
    assert rest[-6] == "True False"
    with open("/proc/self/mounts") as file:
        count = len(file.readlines())
    assert rest[-8:-6] == [str(count + 1)] * 2, rest


def test_no_placeholder_is_seen(umvm_run: Callable[..., Result], at: Path) -> None:
    """Whatever a guest can read of /proc doesn't name the shadow directory."""
    body = f"""
import mmap, os, socket, subprocess
os.chdir({str(at)!r})
os.mkdir("d"); f = open("f", "w+b"); f.write(b"x" * 5000); f.flush(); d = os.open("d", 0); os.mkfifo("p"); p = os.open("p", os.O_RDWR)
m = mmap.mmap(f.fileno(), 0); s = socket.socket(socket.AF_UNIX); s.bind("s"); os.chdir("d")
os.system("cp /bin/sleep ./z")
child = subprocess.Popen(["./z", "30"])
found = []
def walk(top):
    for name in os.listdir(top):
        path = top + "/" + name
        if os.path.islink(path):
            try: text = os.readlink(path)
            except OSError: continue
        elif os.path.isdir(path):
            if name not in ("net", "ns", "attr", "map_files"): walk(path)
            continue
        else:
            if name in ("cmdline", "mem", "pagemap", "clear_refs", "kmsg", "auxv"): continue
            try: text = open(path, errors="replace").read(1000000)
            except OSError: continue
        if "umvm-" in text.replace("umvm-test", ""):
            found.append((path, [l for l in text.splitlines() if "umvm-" in l][:2]))
os.system("sleep 0.1")
for pid in (os.getpid(), child.pid): walk(f"/proc/{{pid}}")
print(found)
print(subprocess.run(["ls", "-lR", "/proc/self/fd", f"/proc/{{child.pid}}/cwd/"], capture_output=True, text=True).stdout.count("umvm-"))
child.kill()
"""
    result = umvm_run([sys.executable, "-c", body], mounts=[f"memory:none:{at}"])
    assert result.ok() == "[]\n0\n", result


def test_other_processes_are_seen_from_all_sides(umvm_run: Callable[..., Result], at: Path) -> None:
    body = f"""
cd {str(at)!r}; cp /bin/sleep z; exec 3>f; ./z 20 & cd /
until [ "$(readlink /proc/$!/exe)" != "$(readlink /proc/$$/exe)" ]; do :; done; readlink /proc/$!/exe /proc/$!/cwd /proc/$!/fd/3; echo via >/proc/$!/cwd/new; cat /proc/$!/root{str(at)!r}/new; ls /proc/$!/cwd; cat /proc/$!/fd/3; cd /proc/$!/cwd; pwd -P; ls; kill $!
"""
    result = umvm_run(["bash", "-c", body], mounts=[f"memory:none:{at}"])
    expected = f"{at}/z\n{at}\n{at}/f\nvia\nf\nnew\nz\n{at}\nf\nnew\nz\n"
    assert result.stdout == expected, result
    assert os.listdir(at) == []
