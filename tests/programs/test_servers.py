"""Servers whose files lie in a mount, and their clients, over loopback."""

from __future__ import annotations

import pytest
from same import Same

PORT = r"""
free_port() { /usr/bin/python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
until_ok() { for _ in $(seq 200); do "$@" >/dev/null 2>&1 && return; sleep 0.05; done; echo "no answer: $1"; return 1; }
"""
SCRIPTS = {
    "redis": (
        r"""
mkdir data; port=$(free_port); c() { redis-cli -p $port "$@"; }
begin() { redis-server --bind 127.0.0.1 --port $port --dir $PWD/data --appendonly yes --appendfsync $1 --save '' --logfile $PWD/log \
    --pidfile $PWD/pid & server=$!; until_ok c ping; [ $(cat pid) = $server ] && echo pid file; }
begin always; seq 300 | sed 's/.*/set key& value&/' | c | sort | uniq -c; c hset h a 1 b 2; c zadd z 3 c 1 a 2 b
(seq 100 | sed 's/.*/rpush list x/' | c >/dev/null) & seq 100 | sed 's/.*/incr n/' | c >/dev/null; wait $!
c bgrewriteaof >/dev/null; done_rewriting() { c info persistence | grep -q 'aof_rewrite_in_progress:0'; }; until_ok done_rewriting
c set after rewrite; c bgsave >/dev/null; saved() { c info persistence | grep -q 'rdb_bgsave_in_progress:0'; }; until_ok saved; c dbsize
kill -9 $server; { wait $server; } 2>/dev/null; find data | sort; redis-check-rdb data/dump.rdb | grep -c 'looks OK'
begin everysec; c dbsize; c llen list; c get n; c get after; c hgetall h; c zrange z 0 -1; c get key77; c shutdown; wait $server; echo $?; ls
truncate -s -5 data/appendonlydir/*.incr.aof; begin no; c dbsize; c exists after; c flushall; c shutdown; wait $server; echo $?
grep -c 'truncating the AOF' log; rm -r data; ls
""",
        ("redis-server", "redis-cli"),
    ),
    "http": (
        r"""
mkdir -p site/sub; echo '<p>index' >site/index.html; seq 20000 >site/numbers; head -c 3000000 /dev/zero | tr '\0' x >site/large; printf 'a\0b' >'site/sp ace'
ln -s numbers site/link; echo secret >outside; ln -s ../outside site/up; mkfifo site/pipe; : >site/empty; touch -d '2020-01-02 03:04:05Z' site/numbers
port=$(free_port); /usr/bin/python3 -m http.server --bind 127.0.0.1 -d site $port >log 2>&1 & server=$!; url=http://127.0.0.1:$port; until_ok curl -sf $url
curl -s $url; curl -s $url/numbers | cksum; cksum <site/numbers; curl -sI $url/numbers | grep -iE 'HTTP|Length|Modified|type'; curl -s $url/sub/; curl -s $url/up
curl -s -o got $url/large; cmp got site/large && echo equal; curl -sO $url/link; cmp link site/numbers && echo equal; curl -s "$url/sp%20ace" | od -c
curl -sf $url/none; echo $?; curl -s -o /dev/null -w '%{http_code} %{size_download}\n' $url/empty; curl -s -z 'Fri, 03 Jan 2020 00:00:00 GMT' -o /dev/null -w '%{http_code}\n' $url/numbers
for i in 1 2 3 4 5 6; do curl -s -o part$i $url/numbers & jobs="$jobs $!"; done; wait $jobs; cat part? | cksum; curl -sR -o dated $url/numbers; stat -c %Y dated
curl -s --create-dirs -o a/b/c $url; cat a/b/c; curl -s -o none/x $url; echo $?; echo new >site/index.html; curl -s $url; rm site/index.html; curl -s $url/ | grep -c '<li>'
curl -s -D headers -c jar -o /dev/null $url/numbers; head -1 headers; curl -s file://$PWD/outside; curl -s -r 2-4 file://$PWD/outside; echo; curl -sT outside file://$PWD/put; cat put
printf 'url = "%s/numbers"\noutput = "configured"\n' $url >rc; curl -s -K rc; cmp configured site/numbers; curl -s --data-binary @outside $url -o /dev/null -w '%{http_code}\n'
kill $server; wait $server; echo $?; sed 's/.*"\(.*\)" /\1 /' log | grep -c GET; ls
""",
        ("curl",),
    ),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_script(same: Same, name: str) -> None:
    script, tools = SCRIPTS[name]
    same(f"{PORT}{script}\nexit 0", "/usr/bin/python3", *tools)
