"""Interpreters and run times that make their own system calls: perl, node, Go, musl."""

from __future__ import annotations

import pytest
from same import Same

PERL = r"""
cat >t.pl <<'END'
use strict; use warnings; use Fcntl qw(:flock :seek :mode); use File::Find; use File::Copy; use File::Path qw(make_path remove_tree);
use File::Temp qw(tempfile); use File::stat (); use POSIX (); use IO::Socket::UNIX; use Cwd;
my $top = getcwd();
open(my $f, '+>', 'f') or die; print $f "line $_\n" for 1 .. 100; seek($f, 0, SEEK_SET); my @l = <$f>; print scalar(@l), " $l[99]"; truncate($f, 21); close $f;
print -s 'f', ' ', (-e 'f') ? 1 : 0, (-d 'f') ? 1 : 0, (-l 'f') ? 1 : 0, (-w 'f') ? 1 : 0, (-x 'f') ? 1 : 0, (-z 'f') ? 1 : 0, (-T 'f') ? 1 : 0, "\n";
symlink('f', 'l'); print readlink('l'), ' ', (-l 'l') ? 1 : 0, ' ', (lstat('l'))[7], "\n"; link('f', 'h'); print +(stat 'f')[3], "\n"; rename('h', 'g'); chmod(0600, 'g'); printf "%o\n", (stat 'f')[2];
utime(1000, 2000, 'f'); print join(',', (stat 'f')[8, 9]), "\n"; mkdir 'd', 0750; make_path('d/a/b/c'); copy('f', 'd/a/f2'); move('g', 'd/a/b/g'); find({ wanted => sub { print "$File::Find::name\n" }, no_chdir => 1, preprocess => sub { sort @_ } }, 'd');
chdir 'd/a'; print getcwd() eq "$top/d/a" ? "cwd\n" : "no\n"; opendir(my $d, '.'); print join(' ', sort grep { !/^\./ } readdir $d), "\n"; rewinddir $d; my $n = () = readdir $d; print "$n\n"; closedir $d; chdir $top;
open($f, '+<', 'f'); flock($f, LOCK_EX) or print "no lock\n"; if (!fork) { open(my $g, '<', 'f'); print flock($g, LOCK_SH | LOCK_NB) ? "got\n" : "busy\n"; exit } wait; flock($f, LOCK_UN); close $f;
open(my $p, '-|', 'cat f; pwd | sed s,.*/,,') or die; print <$p>; close $p; open($p, '|-', 'cat >piped') or die; print $p "through\n"; close $p; print `cat piped`; print +(glob 'd/*/*')[0], "\n"; my ($t, $name) = tempfile(DIR => '.', UNLINK => 1); print $t 'x'; print -e $name ? "temp\n" : '';
my $s = IO::Socket::UNIX->new(Local => 'sock', Listen => 1) or die "sock $!"; if (!fork) { my $c = IO::Socket::UNIX->new(Peer => "$top/sock"); print $c "hello over a socket\n"; exit } my $c = $s->accept; print <$c>; wait; print -S 'sock' ? "socket\n" : ''; unlink 'sock';
POSIX::mkfifo('fifo', 0600); if (!fork) { open(my $o, '>', 'fifo'); print $o "fifo\n"; exit } open(my $i, '<', 'fifo'); print <$i>; wait; print -p 'fifo' ? "p\n" : ''; print "$!\n" unless open(my $x, '<', 'none'); print "$!\n" unless rmdir 'd'; print remove_tree('d'), "\n"; undef $t; unlink $name; print join(' ', sort glob('*')), "\n";
open($f, '>>', 'f'); print $f "appended\n"; close $f; open($f, '<:raw', 'f'); binmode $f; sysseek($f, 5, 0); sysread($f, my $b, 10); print "$b|\n"; print eof($f) ? 1 : 0, "\n"; local @ARGV = ('f'); local $^I = '.bak'; while (<>) { s/line/row/; print } print STDOUT `cat f f.bak`; do './lib.pl'; print $main::x, "\n"; require './Mod.pm'; print Mod::f(), "\n"; print exec('sh', '-c', 'echo executed');
END
echo '$main::x = 42; 1;' >lib.pl; echo 'package Mod; sub f { return __FILE__ } 1;' >Mod.pm; perl t.pl
perl -e 'print "args @ARGV\n"' a b; perl -ne 'print if /x/' lib.pl; perl -Mstrict -c t.pl; printf '#!/usr/bin/perl -w\nprint "$0 @ARGV\\n";' >s; chmod +x s; ./s 1 2; perl -MDB_File -e 1 2>/dev/null; perl -e 'use Storable; store({a => 1}, "st"); print retrieve("st")->{a}, "\n"'
perl -e 'dbmopen(my %h, "dbm", 0644) or print "no dbm\n"; $h{a} = 1; $h{b} = 2; dbmclose %h; dbmopen(%h, "dbm", 0644); print join(",", map {"$_=$h{$_}"} sort keys %h), "\n"'
"""
NODE = r"""
cat >t.js <<'END'
const fs = require('fs'), path = require('path'), cp = require('child_process'), net = require('net'), os = require('os'), zlib = require('zlib'), stream = require('stream/promises');
const p = fs.promises, say = (...a) => console.log(...a), code = f => { try { return f() } catch (e) { return e.code } };
async function main() {
  fs.writeFileSync('a', 'hello'); fs.appendFileSync('a', ' world'); say(fs.readFileSync('a', 'utf8'), fs.statSync('a').size); fs.copyFileSync('a', 'b'); say(code(() => fs.copyFileSync('a', 'b', fs.constants.COPYFILE_EXCL)), code(() => fs.readFileSync('none')));
  fs.mkdirSync('d/e/f', { recursive: true }); fs.symlinkSync('../a', 'd/l'); say(fs.readlinkSync('d/l'), fs.realpathSync('d/l') === path.resolve('a'), fs.realpathSync.native('d/l') === path.resolve('a')); fs.linkSync('a', 'h'); say(fs.statSync('h').nlink); fs.renameSync('h', 'd/h'); fs.chmodSync('b', 0o600); say((fs.statSync('b').mode & 0o777).toString(8)); fs.utimesSync('b', 1, 2); say(fs.statSync('b').mtimeMs, fs.statSync('b', { bigint: true }).atimeNs);
  say(fs.readdirSync('d', { withFileTypes: true }).map(e => [e.name, e.isDirectory(), e.isSymbolicLink()]).sort()); const dir = await p.opendir('d'); let n = 0; for await (const e of dir) n++; say(n); say(code(() => fs.rmdirSync('d')), code(() => fs.accessSync('none')), code(() => fs.openSync('a', 'wx')), code(() => fs.mkdirSync('a/x')), code(() => fs.readdirSync('a')));
  const h = await p.open('big', 'w+'); await Promise.all([...Array(20).keys()].map(i => h.write(Buffer.alloc(10000, i), 0, 10000, i * 10000))); say((await h.stat()).size); const { buffer } = await h.read(Buffer.alloc(4), 0, 4, 9998); say([...buffer]); await h.truncate(50000); await h.sync(); await h.datasync(); await h.close();
  await Promise.all([...Array(100).keys()].map(async i => { await p.writeFile(`d/n${i}`, `${i}`); await p.rename(`d/n${i}`, `d/m${i}`) })); say((await p.readdir('d')).length); say((await Promise.all([...Array(100).keys()].map(i => p.readFile(`d/m${i}`, 'utf8')))).reduce((a, b) => a + +b, 0));
  await stream.pipeline(fs.createReadStream('big'), zlib.createGzip(), fs.createWriteStream('big.gz')); await stream.pipeline(fs.createReadStream('big.gz'), zlib.createGunzip(), fs.createWriteStream('big2')); say(fs.readFileSync('big').equals(fs.readFileSync('big2'))); await stream.pipeline(fs.createReadStream('big', { start: 100, end: 199 }), fs.createWriteStream('part', { flags: 'a' })); say(fs.statSync('part').size);
  say(cp.execSync('pwd; ls | wc -l', { cwd: 'd' }).toString().split('/').pop()); const r = cp.spawnSync('cat', ['a'], { stdio: ['ignore', fs.openSync('out', 'w'), 'pipe'] }); say(r.status, fs.readFileSync('out', 'utf8')); say(code(() => cp.execFileSync('./a'))); const child = cp.fork('./child.js', ['x']); say(await new Promise(f => child.on('message', f))); say(await new Promise(f => child.on('exit', f)));
  const server = net.createServer(c => c.pipe(c)); await new Promise(f => server.listen('sock', f)); const c = net.connect('sock'); c.write('echo'); say((await new Promise(f => c.on('data', f))).toString(), server.address()); c.destroy(); server.close(); await new Promise(f => server.on('close', f)); say(fs.existsSync('sock'));
  fs.cpSync('d', 'copy', { recursive: true, dereference: false, verbatimSymlinks: true }); say(fs.readdirSync('copy').length); const t = fs.mkdtempSync('./t-'); fs.rmSync(t, { recursive: true }); fs.rmSync('copy', { recursive: true }); fs.rmSync('d', { recursive: true, force: true, maxRetries: 2 }); say(fs.readdirSync('.').sort()); fs.unlinkSync('b'); say(fs.existsSync('b'), code(() => fs.unlinkSync('b')));
  const seen = new Promise(f => fs.watchFile('a', { interval: 50 }, (now, was) => { fs.unwatchFile('a'); f([was.size, now.size]) })); setTimeout(() => fs.appendFileSync('a', '!'), 200); say(await seen); process.chdir(os.tmpdir()); say(fs.existsSync('a')); process.chdir(__dirname); say(process.cwd() === __dirname, require('./mod').x, (await import('./es.mjs')).default);
}
main();
END
echo "process.send(process.argv[2] + 1); process.disconnect(); process.exitCode = 3" >child.js; echo 'exports.x = __filename.split("/").pop()' >mod.js; echo 'export default import.meta.url.split("/").pop()' >es.mjs; node t.js; printf '#!/usr/bin/env node\nconsole.log(process.argv.slice(2))' >s; chmod +x s; ./s 1 2; echo 'console.log(1 + 1)' | node -; node -e 'require("worker_threads"); console.log(require("fs").readFileSync("/dev/stdin", "utf8"))' <mod.js
"""
GO = r"""
cat >main.go <<'END'
package main

import (
	"bufio"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

func check(err error) {
	if err != nil {
		fmt.Println("failed:", err)
	}
}

func main() {
	if len(os.Args) > 1 {
		exe, _ := os.Executable()
		dir, _ := os.Getwd()
		fmt.Println("child", os.Args[1:], filepath.Base(exe), filepath.Base(dir), os.Getenv("V"))
		os.Exit(4)
	}
	top, _ := os.Getwd()
	check(os.MkdirAll("d/e/f", 0o755))
	check(os.WriteFile("d/a", []byte("hello"), 0o640))
	check(os.Symlink("a", "d/l"))
	check(os.Link("d/a", "d/h"))
	check(os.Rename("d/h", "d/e/h"))
	i, _ := os.Lstat("d/l")
	j, _ := os.Stat("d/l")
	k, _ := os.Stat("d/e/h")
	fmt.Println(i.Mode(), j.Size(), os.SameFile(j, k))
	filepath.WalkDir("d", func(p string, e fs.DirEntry, err error) error { fmt.Println(p, e.Type()); return err })
	var wait sync.WaitGroup
	for n := 0; n < 50; n++ {
		wait.Add(1)
		go func(n int) {
			defer wait.Done()
			name := fmt.Sprintf("d/e/f/%d", n)
			f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
			check(err)
			f.WriteString(strings.Repeat("x", n))
			f.Seek(0, 0)
			b, _ := io.ReadAll(f)
			if len(b) != n {
				fmt.Println("short", n, len(b))
			}
			f.Close()
			check(os.Remove(name))
			runtime.Gosched()
		}(n)
	}
	wait.Wait()
	var group sync.WaitGroup
	for n := 0; n < 8; n++ {
		group.Add(1)
		go func(n int) {
			defer group.Done()
			c := exec.Command(filepath.Join(top, "prog"), fmt.Sprint(n))
			c.Dir = "d/e"
			c.Env = append(os.Environ(), "V=value")
			out, err := c.CombinedOutput()
			if !strings.Contains(string(out), "prog e value") || c.ProcessState.ExitCode() != 4 {
				fmt.Println("child:", string(out), err)
			}
		}(n)
	}
	group.Wait()
	_, err := exec.Command("./none").Output()
	fmt.Println(err)
	l, err := net.Listen("unix", "d/sock")
	check(err)
	go func() { c, _ := l.Accept(); io.Copy(c, c); c.Close() }()
	c, err := net.Dial("unix", top+"/d/sock")
	check(err)
	fmt.Fprintln(c, "echoed")
	line, _ := bufio.NewReader(c).ReadString('\n')
	fmt.Print(line, l.Addr(), "\n")
	c.Close()
	l.Close()
	check(syscall.Mkfifo("d/p", 0o600))
	go os.WriteFile("d/p", []byte("fifo"), 0)
	b, _ := os.ReadFile("d/p")
	fmt.Println(string(b))
	f, _ := os.Create("d/m")
	check(f.Truncate(10000))
	m, err := syscall.Mmap(int(f.Fd()), 0, 10000, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	check(err)
	copy(m[9000:], "mapped")
	g := make([]byte, 6)
	f.ReadAt(g, 9000)
	fmt.Println(string(g))
	check(syscall.Flock(int(f.Fd()), syscall.LOCK_EX))
	check(syscall.Munmap(m))
	check(os.Chtimes("d/a", time.Unix(1, 0), time.Unix(2, 5)))
	s, _ := os.Stat("d/a")
	fmt.Println(s.ModTime().UTC())
	_, err = os.Open("none")
	fmt.Println(err, os.IsNotExist(err))
	fmt.Println(os.Remove("d"))
	check(os.Chdir("d/e"))
	dir, _ := os.Getwd()
	fmt.Println(filepath.Base(dir))
	check(os.RemoveAll(top + "/d"))
	_, err = os.Stat(".")
	fmt.Println(err)
}
END
export GO111MODULE=off GOPATH=/nonexistent GOFLAGS= GOCACHE=@cache@; go build -o prog main.go && ./prog; gofmt -l .; go vet main.go; printf 'package main\nimport "os"\nfunc main() { os.Stdout.WriteString("run\\n") }' >r.go; go run r.go; printf 'package x\nimport "testing"\nfunc TestX(t *testing.T) { t.TempDir() }' >x_test.go; rm main.go r.go; TMPDIR=$PWD go test ./x_test.go | cut -f1; ls
"""


def test_perl(same: Same) -> None:
    same(f"{PERL}\nexit 0", "perl")


def test_node(same: Same) -> None:
    same(f"{NODE}\nexit 0", "node")


def test_go(same: Same, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Its cache is on the host and warm for the second run; what it makes is in the mount."""
    cache = tmp_path_factory.mktemp("go")
    same(f"{GO.replace('@cache@', str(cache))}\nexit 0", "go")


def test_musl(same: Same) -> None:
    """Another C library, dynamic and static."""
    same(
        r"""
cat >p.c <<'END'
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
static void *work(void *name)
{
    FILE *f = fopen(name, "w");
    fputs("thread", f);
    fclose(f);
    return 0;
}
int main(int c, char **v, char **env)
{
    if (c > 1)
        return puts(v[1]) < 0;
    char path[4096], *argv[] = {v[0], "child", 0};
    struct stat s;
    pthread_t t[4];
    char *names[] = {"t0", "t1", "t2", "t3"};
    for (int i = 0; i < 4; i++)
        pthread_create(t + i, 0, work, names[i]);
    for (int i = 0; i < 4; i++)
        pthread_join(t[i], 0);
    printf("%s %d\n", strrchr(getcwd(path, sizeof path), '/'), stat("t0", &s) ? -1 : (int)s.st_size);
    pid_t p;
    int status = -1;
    posix_spawn(&p, v[0], 0, 0, argv, env);
    waitpid(p, &status, 0);
    printf("%d %d\n", status, system("echo system; ls | wc -l"));
    char *real = realpath("./t1", 0);
    printf("%d\n", real && strstr(real, "/t1"));
    DIR *d = opendir(".");
    int n = 0;
    while (readdir(d))
        n++;
    printf("%d\n", n);
    return execl("/proc/self/exe", "self", "executed itself", (char *)0);
}
END
musl-gcc -o p p.c && ./p; musl-gcc -static -o s p.c && ./s; musl-gcc -static -no-pie -o n p.c && ./n
cp /lib/ld-musl-x86_64.so.1 ld; ./ld ./p child; LD_LIBRARY_PATH=. ./p child
""",
        "musl-gcc",
    )
