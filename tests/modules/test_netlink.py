"""The virtual rtnetlink: real programs against it, a kernel as the oracle, and nonsense."""

from __future__ import annotations

import errno
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

import pytest
from harness import GUESTS, Body, Result, Runner
from hypothesis import given, settings
from hypothesis import strategies as st
from umvm.modules.net import netlink_codec as codec
from umvm.modules.net.netlink import RouteSession
from umvm.modules.net.netlink_diag import DiagSession
from umvm.modules.net.netlink_state import (
    NetState,
)
from umvm.modules.net.netlink_things import (
    IFF_UP,
    Address,
    Event,
    Link,
    NetlinkError,
)

Run = Callable[..., Result]
HARMLESS = ["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin"]
"""Root's guests run without CAP_NET_ADMIN: should one reach the host's netlink, nothing happens."""
MODULE = str(GUESTS / "netlink_module.py")
EMPTY = f"{MODULE},empty"
CAP_NET_ADMIN = 1 << 12


def needs(*tools: str) -> None:
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")


@pytest.fixture
def umvm_run(runner: Runner) -> Run:
    """Runs a body in a VM that can't change the host's network, whatever goes wrong."""

    def run(body: Body, modules: list[str]) -> Result:
        argv = runner.umvm_argv(body, (), modules, ())
        if os.geteuid() == 0:
            needs("setpriv")
            argv = [*HARMLESS, *argv]
        return runner.run(argv)

    return run


def test_guests_cant_change_the_hosts_network(umvm_run: Run) -> None:
    status = umvm_run("cat /proc/self/status", modules=[]).ok()
    effective, bounding = (int(re.findall(rf"{name}:\t(\w+)", status)[0], 16)
                           for name in ("CapEff", "CapBnd"))  # fmt: skip
    assert not effective & CAP_NET_ADMIN
    assert os.geteuid() or not bounding & CAP_NET_ADMIN


# --- iproute2, with a network namespace as the oracle ---------------------------------------------

SCRIPT = """
ip link set lo up; ip link set umvt0 up
ip addr add 10.0.0.1/24 dev umvt0; ip addr add 10.0.0.2/24 brd + dev umvt0
ip addr add 10.1.0.1 peer 10.1.0.2/32 dev umvt0; ip -6 addr add fd00::1/64 dev umvt0 nodad
ip -o -4 addr; ip route show table all type unicast; ip route show table local
ip route get 10.0.0.9; ip route get 127.0.0.1; ip route get 8.8.8.8; ip route get 10.0.0.1
ip route add default via 10.0.0.254; ip route add default via 10.0.0.254
ip route add 9.9.9.0/24 via 1.1.1.1; ip route; ip route get 8.8.8.8
ip addr add 10.0.0.1/24 dev umvt0; ip addr del 10.0.0.77/24 dev umvt0; ip route del 4.4.4.4
ip link set nope up; ip addr add 10.0.0.1/33 dev umvt0; ip link del lo; ip link add type nosuch
N='ip neigh'; M='lladdr 02:00:00:00:00:09 dev umvt0'
$N add 10.0.0.9 $M; $N; $N add 10.0.0.9 $M; $N del 10.0.0.9 dev umvt0; $N del 10.0.0.9 dev umvt0; $N
ip rule add from 10.0.0.0/8 table 100; ip rule; ip rule del from 10.0.0.0/8
ip rule del from 10.0.0.0/8; ip rule
ip route add blackhole 5.5.5.0/24; ip route add unreachable 5.5.6.0/24
ip route get 5.5.5.1; ip route get 5.5.6.1
ip route replace default via 10.0.0.253; ip route append default via 10.0.0.252; ip route
ip route add 6.6.6.0/24 dev umvt0 src 1.2.3.4; ip route add 6.6.6.0/24 dev umvt0 metric 5
ip route add 6.6.6.1/24 dev umvt0; ip route del default; ip route; ip route flush 6.6.6.0/24
ip route show table 100; ip route add 7.7.7.0/24 dev umvt0 table 100; ip route show table 100
ip -6 route add default via fd00::99; ip -6 route add default via fd00::99
ip -6 route get fd00::5; ip -6 route get ::1; ip -6 route get 2001::1
ip -6 addr del fd00::1/64 dev umvt0; ip -6 addr del fd00::1/64 dev umvt0
ip link set umvt0 mtu 1400 alias hello; ip link show umvt0; ip link set umvt0 name lo
ip link set umvt0 down; ip -o addr show umvt0; ip -4 route show table all
ip route add 8.8.0.0/16 dev umvt0; ip link set umvt0 up; ip addr del 10.0.0.1/24 dev umvt0
ip -o -4 addr; ip -4 route; ip -4 addr flush dev umvt0; ip -o -4 addr; ip -4 route show table all
ip -j addr show lo
"""
ADD = "ip link add umvt0 address 02:00:00:00:00:07 index 2 type"


def oracle_kind() -> str:
    """A type of link that the host's kernel has without loading a module for it."""
    for kind in ("dummy", "ifb"):
        if Path(f"/sys/module/{kind}").exists() or Path(f"/sys/class/net/{kind}0").exists():
            return kind
    pytest.skip("the kernel has neither dummy nor ifb links")


def test_iproute2_shows_and_changes_as_in_a_kernel(umvm_run: Run) -> None:
    needs("ip", "unshare")
    native = subprocess.run(
        ["unshare", "-Urn", "bash", "-c", f"exec 2>&1; {ADD} {oracle_kind()} || exit 9; {SCRIPT}"],
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    if native.returncode:
        pytest.skip("no network namespace to compare with")
    expected = native.stdout.replace("pfifo_fast", "noqueue").replace("qlen 32", "qlen 1000")
    vm = umvm_run(["bash", "-c", f"exec 2>&1; {ADD} dummy; {SCRIPT}"], modules=[EMPTY])
    assert re.sub(r"uid \d+ ", "uid 0 ", vm.stdout) == expected


def test_ip_monitor_hears_of_changes(umvm_run: Run) -> None:
    needs("ip")
    body = """
    exec 3< <(exec ip monitor link address route)
    watcher=$!
    n=0; while [ $n -lt 100 ] && ! ss -xan >/dev/null; do n=$((n+1)); done
    sleep 0.5
    ip addr add 10.9.0.1/16 dev umvt0; ip link set umvt0 down; ip link set umvt0 mtu 1300
    while read -r line <&3; do echo "$line"; case $line in *"mtu 1300"*) break;; esac; done
    kill $watcher
    """
    shown = umvm_run(["bash", "-c", body], modules=[MODULE]).ok()
    for part in (
        "inet 10.9.0.1/16 scope global umvt0",
        "local 10.9.0.1 dev umvt0 table local proto kernel scope host src 10.9.0.1",
        "umvt0: <BROADCAST,MULTICAST> mtu 1500 qdisc noqueue state DOWN",
        "Deleted inet6 fd00::1/64",
    ):
        assert part.replace("Deleted inet6", "inet6") in shown
    assert "Deleted" in shown


def test_ss_shows_the_stacks_sockets(umvm_run: Run) -> None:
    needs("ss")
    fields = umvm_run("ss -tlnH", modules=[MODULE]).ok().split()
    assert fields[:1] + fields[3:5] == ["LISTEN", "10.0.0.1:80", "0.0.0.0:*"]
    assert umvm_run("ss -tanH state established", modules=[MODULE]).ok() == ""


# --- other programs -------------------------------------------------------------------------------


def test_pyroute2_inside(umvm_run: Run) -> None:
    source = """
from pyroute2 import IPRoute, NDB
with IPRoute() as ip:
    ip.link("add", ifname="d1", kind="dummy")
    (index,) = ip.link_lookup(ifname="d1")
    ip.addr("add", index=index, address="192.168.5.1", prefixlen=24)
    ip.link("set", index=index, state="up")
    ip.route("add", dst="10.77.0.0/16", gateway="192.168.5.9")
    print([r.get_attr("RTA_DST") for r in ip.get_routes(family=2, table=254)])
    try:
        ip.addr("add", index=index, address="192.168.5.1", prefixlen=24)
    except Exception as error:
        print(error.code)
    ip.link("del", index=index)
    print([link.get_attr("IFLA_IFNAME") for link in ip.get_links()])
with NDB() as ndb:
    with ndb.interfaces["umvt0"] as link:
        link.add_ip("10.3.0.1/24")
    print(sorted(row.address for row in ndb.addresses.dump() if "." in row.address))
"""
    result = umvm_run([sys.executable, "-c", source], modules=[MODULE])
    assert result.ok() == (
        "['10.0.0.0', '10.77.0.0', '192.168.5.0']\n17\n['lo', 'umvt0']\n"
        "['10.0.0.1', '10.3.0.1', '127.0.0.1']\n"
    )


def test_node_and_the_c_library(umvm_run: Run) -> None:
    needs("node")
    shown = umvm_run(
        ["node", "-e", "for (const [n, l] of Object.entries(os.networkInterfaces())) "
         "for (const a of l) console.log(n, a.cidr, a.mac)"], modules=[MODULE],
    ).ok()  # fmt: skip
    assert "umvt0 10.0.0.1/24 02:00:00:00:00:07" in shown and "lo ::1/128" in shown


def test_go(umvm_run: Run, go_interfaces: str) -> None:
    shown = umvm_run([go_interfaces], modules=[MODULE]).ok()
    assert "umvt0 up|broadcast|multicast" in shown and "10.0.0.1/24" in shown


@pytest.fixture(scope="module")
def go_interfaces(tmp_path_factory: pytest.TempPathFactory) -> str:
    needs("go")
    place = tmp_path_factory.mktemp("go")
    (place / "main.go").write_text(
        'package main\nimport ("fmt"; "net")\nfunc main() { all, _ := net.Interfaces(); '
        "for _, i := range all { a, _ := i.Addrs(); fmt.Println(i.Name, i.Flags, a) } }\n"
    )
    subprocess.run(
        ["go", "build", "-o", "show", "main.go"], cwd=place, check=True, timeout=60,
        env={"HOME": str(place), "PATH": "/usr/bin:/bin", "GO111MODULE": "off"},
    )  # fmt: skip
    return str(place / "show")


def sockets() -> list[object]:
    """How an AF_NETLINK socket behaves, apart from what it says."""
    import errno
    import os
    import select
    import socket
    import struct
    import threading

    dump = struct.pack("=IHHIIB3x", 20, 18, 0x301, 1, 0, 0)
    found: list[object] = []

    def answer(call: object) -> None:
        try:
            found.append(call())  # type: ignore[operator]
        except OSError as error:
            found.append(errno.errorcode[error.errno or 0])

    s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    found.append([s.getsockopt(1, option) for option in (3, 38, 39)])
    answer(s.getsockname)
    s.send(dump)
    found.append(s.getsockname() == (os.getpid(), 0))
    found.append(select.select([s], [], [], 10)[0] == [s])
    data, name = s.recvfrom(16, socket.MSG_PEEK)
    found.append((data[4:8], name))
    found.append(s.recvmsg(16, 0, socket.MSG_PEEK)[2:])
    data, _, flags, name = s.recvmsg(65536)
    found.append((flags, name, data[:2] != b"\0\0"))
    while struct.unpack_from("=H", s.recv(65536), 4)[0] != 3:
        pass
    answer(lambda: s.recv(10, socket.MSG_DONTWAIT))
    answer(lambda: s.recvfrom(10, socket.MSG_DONTWAIT))
    answer(lambda: s.sendto(dump, (0, 0)))
    found.append(len(s.recvfrom(65536)[0]) > 20)
    answer(lambda: s.sendto(dump, (999999, 0)))
    answer(lambda: s.bind((0, 0)))
    answer(lambda: s.bind((5, 0)))
    answer(lambda: s.bind((os.getpid(), 1 << 4)))
    found.append(s.getsockname() == (os.getpid(), 1 << 4))
    answer(s.getpeername)
    answer(lambda: s.listen(1))
    answer(lambda: s.accept())
    answer(lambda: s.shutdown(2))
    answer(lambda: s.setsockopt(270, 1, 7))
    answer(lambda: s.setsockopt(270, 1, 10000))
    answer(lambda: s.setsockopt(270, 99, 1))
    answer(lambda: s.setsockopt(270, 11, b"a"))
    answer(lambda: s.getsockopt(270, 11))
    answer(lambda: s.getsockopt(270, 99))
    answer(lambda: s.getsockname()[1])
    other = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, 0)
    answer(lambda: other.bind((os.getpid(), 0)))
    other.bind((0, 0))
    found.append(other.getsockname()[0] not in (0, os.getpid()))
    for kind, protocol in ((1, 0), (3, 99), (3, -1), (5, 0), (2, 4)):
        answer(lambda: socket.socket(socket.AF_NETLINK, kind, protocol).close())  # noqa: B023
    later = threading.Timer(0.3, lambda: other.send(dump))
    later.start()
    found.append(len(other.recvfrom(65536)[0]) > 20)
    later.join()
    s.close()
    other.close()
    return found


def test_sockets_are_those_of_a_kernel(umvm_run: Run) -> None:
    assert umvm_run(sockets, modules=[MODULE]).ok() == f"result {sockets()!r}\n"


# --- nonsense -------------------------------------------------------------------------------------


def state() -> NetState:
    found = NetState()
    found.set_link(1, flags=IFF_UP, change=IFF_UP)
    found.add_link(Link(0, "umvt0", flags=IFF_UP, address=bytes(6)))
    found.add_address(Address(2, ip_address("10.0.0.1"), 24))
    return found


KINDS = st.sampled_from([group + op for group in codec.LAYOUTS for op in range(4)])
ATTRIBUTE = st.tuples(st.integers(0, 40), st.binary(max_size=24)).map(
    lambda a: struct.pack("=HH", len(a[1]) + 4, a[0]) + a[1] + bytes(-len(a[1]) % 4)
)
BODY = st.tuples(
    st.sampled_from([0, 2, 10, 7, 255]), st.binary(max_size=19), st.lists(ATTRIBUTE, max_size=6)
)
MESSAGE = st.tuples(KINDS, st.integers(0, 0xFFFF), BODY, st.integers(-8, 8)).map(
    lambda m: struct.pack("=IHHII", max(0, 16 + 1 + len(m[2][1]) + sum(map(len, m[2][2])) + m[3]),
                          m[0], m[1] | 1, 7, 0)
    + bytes([m[2][0]]) + m[2][1] + b"".join(m[2][2])
)  # fmt: skip


@settings(max_examples=300)
@given(st.lists(MESSAGE, max_size=4), st.booleans(), st.binary(max_size=40))
def test_any_request_gets_answers_that_can_be_read(
    messages: list[bytes], strict: bool, tail: bytes
) -> None:
    session = RouteSession(state())
    session.strict = session.extended = strict
    session.groups = set(range(1, 33))
    told: list[bytes] = []
    session.deliver = told.append
    for datagram in (*messages, b"".join(messages) + tail, tail):
        for answer in [*session.handle(datagram), *told]:
            assert answer and sum(h.length + 3 & ~3 for h, _ in codec.split(answer)) >= len(answer)
    assert session.state.link(1).name


@settings(max_examples=100)
@given(st.binary(max_size=80), st.integers(0, 0xFFFF))
def test_any_diag_request(body: bytes, flags: int) -> None:
    session = DiagSession()
    for kind in (18, 20, 21):
        request = struct.pack("=IHHII", 16 + len(body), kind, flags | 1, 0, 0) + body
        assert all(codec.split(answer) for answer in session.handle(request))


def test_the_fabric_can_refuse_a_change() -> None:
    """What `guard` raises is what the guest gets, and nothing has changed."""
    found = state()

    def refuse(event: Event) -> None:
        raise NetlinkError(errno.EADDRNOTAVAIL, "taken")

    found.guard = refuse
    session = RouteSession(found)
    session.extended = True
    request = codec.message(
        codec.ADDR, {"family": 2, "prefixlen": 24, "index": 2},
        [("IFA_LOCAL", "10.0.0.7"), ("IFA_ADDRESS", "10.0.0.7")], codec.ADDR, 0x605, 1, 0,
    )  # fmt: skip
    (answer,) = session.handle(request)
    assert struct.unpack_from("=i", answer, 16)[0] == -errno.EADDRNOTAVAIL and b"taken" in answer
    assert [str(a.local) for a in found.addresses if a.index == 2 and a.family == 2] == ["10.0.0.1"]
