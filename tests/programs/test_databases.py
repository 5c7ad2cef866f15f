"""Programs that lock, map and synchronize: sqlite, redis, flock, jq, editors."""

from __future__ import annotations

import pytest
from same import Same

SCRIPTS = {
    "journals": r"""
for mode in delete truncate persist memory wal off; do db=$mode.db
sqlite3 $db "pragma journal_mode=$mode; create table t(a integer primary key, b text); with recursive n(i) as (select 1 union all select i+1 from n where i<500) insert into t select i, 'row '||i from n; begin; update t set b=b||'!' where a%3=0; commit; begin; delete from t; rollback; select count(*), sum(a), max(b) from t; create index x on t(b); pragma integrity_check;"; ls $mode*
sqlite3 $db "delete from t where a%2; vacuum; select count(*) from t; pragma page_count;"; done; sqlite3 wal.db "pragma wal_checkpoint(truncate); .backup copy.db"; sqlite3 copy.db "select sum(a) from t; attach 'delete.db' as d; insert into d.t select a+1000, b from t; select count(*) from d.t; .dump" | tail -3
sqlite3 delete.db '.clone cl.db' | head -2; sqlite3 delete.db .dump | sqlite3 fromdump.db; sqlite3 fromdump.db 'select count(*) from t'; sqlite3 -readonly delete.db 'delete from t'; sqlite3 /nonexistent/x.db 'select 1'; sqlite3 file:delete.db?mode=ro 'select count(*) from t'; sqlite3 delete.db "pragma mmap_size=1000000; select sum(length(b)) from t; update t set b='m' where a<100; select count(*) from t where b='m'"
""",
    "two processes": r"""
for mode in delete wal; do sqlite3 $mode.db "pragma journal_mode=$mode; create table t(who, n)"; for w in 1 2 3; do (for i in $(seq 15); do echo "insert into t values($w, $i);"; done | sqlite3 -cmd '.timeout 20000' $mode.db) & done; wait; sqlite3 $mode.db 'select who, count(*), sum(n) from t group by who'; done
mkfifo go; (echo 'begin immediate; insert into t values(9, 9);'; read -r x <go; echo 'commit;') | sqlite3 delete.db & for i in $(seq 50); do [ -e delete.db-journal ] && break; sleep 0.05; done; sqlite3 delete.db "insert into t values(8, 8)"; sqlite3 delete.db 'select count(*) from t where who=9'; echo >go; wait; sqlite3 delete.db 'select count(*) from t where who>7'
(echo "pragma journal_mode; begin; select count(*) from t;"; read -r x <go; echo 'select count(*) from t; commit; select count(*) from t;') | sqlite3 wal.db >reader & sleep 0.3; sqlite3 wal.db "insert into t values(7, 7)"; echo >go; wait; cat reader; sqlite3 wal.db 'pragma integrity_check'; ls wal.db*
(echo 'begin exclusive;'; sleep 30) | sqlite3 delete.db & sleep 0.3; sqlite3 delete.db 'select 1 from t limit 1'; kill $(jobs -p); kill %%; pkill -P $$ sleep; wait; sqlite3 delete.db 'select count(*) from t'; printf 'garbage garbage' >bad.db; sqlite3 bad.db 'select * from t'
""",
    "crash": r"""
exec 2>/dev/null; sqlite3 x.db "pragma journal_mode=wal; create table t(a); insert into t values(1)"; mkfifo f; sqlite3 x.db <f & p=$!; exec 3>f; echo "insert into t values(2); begin; insert into t values(3); select count(*) from t;" >&3; sleep 0.4; kill -9 $p; exec 3>&-; { wait; } 2>/dev/null; ls x.db*; sqlite3 x.db 'select * from t; pragma integrity_check'; ls x.db*
sqlite3 y.db "create table t(a); insert into t values(1)"; sqlite3 y.db <f & p=$!; exec 3>f; echo "pragma cache_size=1; begin; insert into t select randomblob(5000) from (select 1 union select 2 union select 3 union select 4), (select 1 union select 2 union select 3); select count(*) from t;" >&3; sleep 0.4; kill -9 $p; exec 3>&-; { wait; } 2>/dev/null; ls y.db*; sqlite3 y.db 'select count(*) from t; pragma integrity_check'; ls y.db*
""",
    "flock": r"""
exec 2>/dev/null; touch l; flock l echo got; (flock 9; echo first >>o; sleep 0.4; echo first done >>o) 9>l & sleep 0.15; (flock 9; echo second >>o) 9>l; wait; cat o; (flock 9; (flock -n 8 || echo busy) 8>l; (flock -sn 8 || echo busy shared) 8<l) 9>l; (flock -s 9; (flock -sn 8 && echo shared) 8<l; (flock -n 8 || echo busy) 8<l) 9<l
flock -w 0.2 l sh -c 'flock -w 0.1 l true || echo waited'; (flock -u 9; flock -n 9 && echo again) 9>l; flock -o l sh -c 'flock -n l echo not inherited || echo inherited'; mkdir d; flock d echo directory; flock -E 7 -n l sh -c 'flock -E 7 -n l true; echo $?'; flock new true; ls; flock -c 'echo command' l; flock none/x true; for i in 1 2 3 4; do (for j in $(seq 10); do flock l sh -c 'n=$(cat c); echo $((n + 1)) >c'; done) & done; wait; cat c
""",
    "redis": r"""
mkdir data; redis-server --port 0 --unixsocket $PWD/s --dir $PWD/data --appendonly yes --appendfsync always --save '' --daemonize no --logfile log & server=$!; for i in $(seq 100); do [ -S s ] && redis-cli -s s ping >/dev/null 2>&1 && break; sleep 0.05; done; c() { redis-cli -s s "$@"; }; c ping; c set k v; c get k; for i in 1 2 3; do c rpush list $i; done; c incrby n 41; c incr n; seq 200 | sed 's/.*/set key& value&/' | c | sort | uniq -c
c bgrewriteaof >/dev/null; for i in $(seq 100); do c info persistence | grep -q 'aof_rewrite_in_progress:0' && break; sleep 0.05; done; c dbsize; c save; c config get dir | wc -l; kill -9 $server; wait $server 2>/dev/null; ls data data/*; rm -f s; redis-server --port 0 --unixsocket $PWD/s --dir $PWD/data --appendonly yes --save '' --logfile log2 & server=$!; for i in $(seq 100); do [ -S s ] && c ping >/dev/null 2>&1 && break; sleep 0.05; done
c get n; c lrange list 0 -1; c dbsize; c get key77; c shutdown nosave; wait $server; echo $?; ls -A; redis-check-aof data/appendonlydir/*.manifest >/dev/null && echo checked; redis-check-rdb data/dump.rdb | grep -c 'looks'
""",
    "text": r"""
echo '{"a": [1, 2, {"b": "ü"}], "c": null}' >j; jq -c . j; jq -r '.a[2].b' j; jq -s 'length' j j; jq --slurpfile x j -n '$x[0].a | add? // "none"'; jq . none; jq -n 'input' <j | wc -l; jq '.a += [3]' j >k && mv k j; jq -c .a j; command -v ed >/dev/null && printf '1i\nfirst\n.\n,s/a/A/g\nw\nq\n' | ed -s j; cat j
command -v vim >/dev/null && { seq 5 >v; chmod 640 v; vim -u NONE -es -c '2d' -c 's/3/three/' -c 'wq' v; cat v; stat -c %a v; vim -u NONE -es -c 'set backup backupcopy=yes' -c '1d' -c 'wq' v; ls v*; vim -u NONE -es -n -c 'e new' -c 'normal ihello' -c 'x'; cat new; vim -u NONE -es -c 'set undofile' -c 'normal x' -c wq new; ls -A; vim -u NONE -es -r new -c q; (vim -u NONE -es -c 'edit v' -c 'sleep 1' -c 'quit!' & sleep 0.4; ls -A | grep swp; wait); }; sed -n '$=' j; nano --version 2>/dev/null | wc -l >/dev/null
m4 <<<'define(x, 7)x' 2>/dev/null; bc <<<'2^100' 2>/dev/null; make -v >/dev/null && printf 'out: in\n\tcp in out\nin:\n\techo made >in\n' >Makefile && make && make && touch -d '+1 hour' in && make -s && cat out
""",
}
TOOLS = {
    "flock": ("flock",),
    "redis": ("redis-server", "redis-cli"),
    "text": ("jq",),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_script(same: Same, name: str) -> None:
    same(f"{SCRIPTS[name]}\nexit 0", *TOOLS.get(name, ("sqlite3",)))
