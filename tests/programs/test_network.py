"""Programs that nobody here wrote, on a virtual network of several VMs."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import PYTHON, Result, Runner, wait_until

Run = Callable[..., Result]


def need(*tools: str) -> None:
    """Skip unless all are installed."""
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"not installed: {' '.join(missing)}")


@pytest.mark.slow
def test_redis_replicates_and_bears_a_cut_link(runner: Runner, tmp_path: Path) -> None:
    need("redis-server", "redis-cli")
    config = "--save '' --bind 0.0.0.0 --protected-mode no --logfile /dev/null --repl-timeout 3"
    vms = []
    for name, more in (("one", ""), ("two", "--replicaof one 6379")):
        directory = tmp_path / name
        directory.mkdir()
        script = f"exec redis-server --dir {directory} {config} {more}"
        vms.append(runner.start_umvm(script, options=["--net", "fabric:r", "--name", name]))

    def ask(host: str, command: str) -> str:
        script = f"timeout 5 redis-cli -h {host} {command}"
        return runner.command("exec", host, "sh", "-c", script).stdout

    def linked(state: str) -> Callable[[], bool]:
        return lambda: f"master_link_status:{state}" in ask("two", "info replication")

    assert wait_until(linked("up"), 20)
    assert ask("one", "set key before") == "OK\n"
    assert wait_until(lambda: ask("two", "get key") == "before\n")
    runner.command("net", "link", "two", "--down").ok()
    assert wait_until(linked("down"), 20)
    assert ask("one", "set key after") == "OK\n"
    assert ask("two", "get key") == "before\n"
    runner.command("net", "link", "two", "--up").ok()
    assert wait_until(lambda: ask("two", "get key") == "after\n", 20)
    for name, vm in zip(("one", "two"), vms, strict=True):
        runner.command("kill", name).ok()
        vm.wait(20)


GO = """
package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

func main() {
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		fmt.Fprintf(w, "%s", host)
	})
	listener, err := net.Listen("tcp", ":80")
	fmt.Println(listener.Addr(), err)
	go http.Serve(listener, nil)
	for _, url := range []string{"http://10.0.0.1/", "http://gopher.internal/", "http://127.0.0.1/"} {
		answer, err := http.Get(url)
		if err != nil {
			fmt.Println(err)
			continue
		}
		text, _ := io.ReadAll(answer.Body)
		fmt.Println(len(text) > 0, string(text) == url[7:len(url)-1])
	}
	_, err = net.DialTimeout("tcp", "10.0.0.1:99", time.Second)
	fmt.Println(err)
	server, _ := net.ListenUDP("udp", &net.UDPAddr{Port: 53000})
	client, _ := net.Dial("udp", "127.0.0.1:53000")
	client.Write([]byte("question"))
	buffer := make([]byte, 100)
	n, from, err := server.ReadFromUDP(buffer)
	server.WriteToUDP(buffer[:n], from)
	n, err = client.Read(buffer)
	fmt.Println(string(buffer[:n]), from.IP, err)
}
"""


@pytest.mark.slow
def test_a_go_server(umvm_run: Run, tmp_path: Path) -> None:
    need("go")
    (tmp_path / "main.go").write_text(GO)
    build = ["go", "build", "-o", "server", "main.go"]
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "GO111MODULE": "off"}
    built = subprocess.run(build, cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert built.returncode == 0, built.stderr
    shown = umvm_run([str(tmp_path / "server")], options=["--net", "fabric", "--name", "gopher"])
    assert shown.ok().splitlines() == [
        "[::]:80 <nil>",
        "true true",
        "true false",
        "true true",
        "dial tcp 10.0.0.1:99: connect: connection refused",
        "question 127.0.0.1 <nil>",
    ]


NODE = """
const http = require('http'), dns = require('dns'), net = require('net');
const server = http.createServer((q, r) => r.end(q.socket.remoteAddress + ' ' + q.socket.localPort));
server.listen(80, () => {
  console.log(server.address().port);
  http.get('http://10.0.0.1/', r => r.on('data', d => {
    console.log(String(d));
    dns.resolve4('n.internal', (error, found) => {
      console.log(error, found);
      net.connect(99, '10.0.0.1').on('error', e => { console.log(e.code); process.exit(); });
    });
  }));
});
"""


@pytest.mark.slow
def test_a_node_server(umvm_run: Run) -> None:
    need("node")
    shown = umvm_run(["node", "-e", NODE], options=["--net", "fabric", "--name", "n"]).ok()
    expected = ["80", "::ffff:10.0.0.1 80", "null [ '10.0.0.1' ]", "ECONNREFUSED"]
    assert shown.splitlines() == expected


def test_ncat_and_curl_between_vms(runner: Runner, tmp_path: Path) -> None:
    need("ncat", "curl")
    (tmp_path / "page").write_text("the page\n")
    serve = [*PYTHON, "-m", "http.server", "80"]
    options = ["--net", "fabric:n", "--name", "web", "--chdir", str(tmp_path)]
    web = runner.start_umvm(
        serve, options=options, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    assert wait_until(lambda: "tcp/80" in runner.command("net", "show", "n").stdout)
    script = """
    curl -sS --noproxy '*' http://web.internal/page
    printf 'GET /page HTTP/1.0\\r\\n\\r\\n' | ncat web 80 | tail -n 1
    """
    assert runner.umvm(script, options=["--net", "fabric:n"]).ok() == "the page\n" * 2
    runner.command("kill", "web").ok()
    web.wait(20)
