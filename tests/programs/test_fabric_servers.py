"""A distributed program on a virtual network, whose links are cut and healed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import UMVM, Result

Run = Callable[..., Result]
SENTINEL = """port 26379
dir {dir}
protected-mode no
sentinel monitor set 10.0.0.4 6379 2
sentinel down-after-milliseconds set 1000
sentinel failover-timeout set 4000
sentinel parallel-syncs set 1
"""


@pytest.mark.slow
@pytest.mark.timeout(170)
def test_a_redis_sentinel_set_loses_its_master(umvm_run: Run, tmp_path: Path) -> None:
    """Three hosts; the way of the master to both others is cut, then healed."""
    if shutil.which("redis-server") is None or shutil.which("redis-cli") is None:
        pytest.skip("redis is not installed")
    for host in (4, 5, 6):
        (tmp_path / f"{host}").mkdir()
        (tmp_path / f"{host}" / "sentinel.conf").write_text(
            SENTINEL.format(dir=tmp_path / f"{host}")
        )
    umvm = " ".join(UMVM)
    body = f"""
    cd {tmp_path}
    on() {{ host=$1; shift; {umvm} stack /dev/net/$host "$@"; }}
    soon() {{ for i in $(seq 150); do "$@" >/dev/null 2>&1 && return; sleep 0.2; done; echo "not so: $*"; }}
    for n in 4 5 6; do {umvm} mount -t net -o ip=10.0.0.$n,name=h$n fabric:u /dev/net/$n; done
    for n in 4 5 6; do
        replica=; [ $n = 4 ] || replica="--replicaof 10.0.0.4 6379"
        {umvm} stack /dev/net/$n redis-server --port 6379 --bind 0.0.0.0 --protected-mode no --save '' --dir $PWD/$n $replica >$n/log & servers="$servers $!"
    done
    linked() {{ [ "$(on $1 redis-cli info replication | grep -c "$2")" = $3 ]; }}
    soon linked 4 state=online 2
    for n in 4 5 6; do {umvm} stack /dev/net/$n redis-server $PWD/$n/sentinel.conf --sentinel >$n/watch & servers="$servers $!"; done
    all_there() {{ on $1 redis-cli -p 26379 sentinel ckquorum set | grep -q '^OK 3'; }}
    for n in 4 5 6; do soon all_there $n; done
    on 5 redis-cli -h 10.0.0.4 set before cut
    {umvm} net link h4 h5 --down; {umvm} net link h4 h6 --down
    master() {{ on $1 redis-cli -p 26379 sentinel get-master-addr-by-name set | head -1; }}
    moved() {{ [ "$(master 5)" = "$(master 6)" ] && [ "$(master 5)" != 10.0.0.4 ]; }}
    soon moved; new=$(master 5); n=${{new##*.}}; soon linked $n role:master 1
    on 5 redis-cli -h $new set during "$(master 4)"
    {umvm} net link h4 h5 --up; {umvm} net link h4 h6 --up
    soon linked 4 role:slave 1; soon linked 4 master_link_status:up 1
    on 4 redis-cli get before; on 4 redis-cli get during; [ "$(master 4)" = $new ] && echo agreed
    kill $servers; wait
    """
    assert umvm_run(body, timeout=150).stdout.split() == "OK OK cut 10.0.0.4 agreed".split()
