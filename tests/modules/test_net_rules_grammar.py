"""The grammar of rules on the host's network, and messages of nameservers."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from umvm.modules.net import rules_names
from umvm.modules.net.rules import BIND, CONNECT, Policy, Where, parse, plain

from umvm.errors import UsageError


def where(text: str, port: int = 443, protocol: str = "tcp", direction: str = CONNECT) -> Where:
    return Where(direction, protocol, ip_address(text), port)


# --- the grammar ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "fits", "others"),
    [
        ("10.0.0.0/8", [where("10.1.2.3", 1)], [where("11.0.0.1"), where("10.0.0.1", 1, "tcp", BIND)]),
        ("10.0.0.1:443", [where("10.0.0.1")], [where("10.0.0.1", 444), where("10.0.0.1", 443, "icmp")]),
        ("udp://:53", [where("1.2.3.4", 53, "udp")], [where("1.2.3.4", 53)]),
        ("tcp+udp://*:1-10", [where("::1", 10, "udp")], [where("::1", 11)]),
        ("[2001:db8::1]:443", [where("2001:db8::1")], [where("2001:db8::2")]),
        ("2001:db8::/32", [where("2001:db8::2", 9)], [where("2001:db9::2")]),
        ("bind://:8080-8089", [where("0.0.0.0", 8085, "tcp", BIND)], [where("0.0.0.0", 8085)]),
        ("*", [where("1.2.3.4", 1, "icmp")], [where("1.2.3.4", 1, "tcp", BIND)]),
        ("icmp://10.0.0.1", [where("10.0.0.1", 0, "icmp")], [where("10.0.0.1")]),
        ("bind+connect://127.0.0.1:5", [where("127.0.0.1", 5), where("127.0.0.1", 5, "udp", BIND)], []),
    ],
)  # fmt: skip
def test_rules_about_addresses(rule: str, fits: list[Where], others: list[Where]) -> None:
    policy = Policy(allow=rule)
    assert [policy.objection(place) for place in fits] == [""] * len(fits)
    parsed = parse(rule)
    assert not any(parsed.fits(place, ()) for place in others)


def test_names_and_patterns() -> None:
    here = where("1.2.3.4")
    assert Policy(allow="*.debian.org:443").objection(here, ["ftp.Debian.org."]) == ""
    assert Policy(allow="*.debian.org:443").objection(here, ["debian.org", "x.debian.org.evil"])
    assert Policy(allow="debian.org").objection(here, ["debian.org"]) == ""
    assert Policy(allow="debian.org").objection(here, []) == "no rule allows it"
    assert Policy(deny="ads.example").objection(here, ["ads.example"]) == "deny ads.example"
    assert Policy(allow="*", deny="1.2.3.4:443").objection(here)
    assert Policy(allow="bind://:80").objection(here) == ""  # nothing is said of connect


@pytest.mark.parametrize(
    "bad",
    ["foo://1.2.3.4", "://x", "1.2.3.4:x", "1.2.3.4:5-4", "1.2.3.4:70000", "1.2.3", "10.0.0.0/99",
     "[::1", "[::1]x", "a b", "bind://name:80", "x/y"],
)  # fmt: skip
def test_bad_rules(bad: str) -> None:
    with pytest.raises(UsageError):
        Policy(allow=bad)


def test_port_maps() -> None:
    policy = Policy(ports="80:8080,1-9:20001-20009")
    assert [policy.outside(port) for port in (80, 1, 9, 10)] == [8080, 20001, 20009, 10]
    assert [policy.inside(port) for port in (8080, 20003, 80)] == [80, 3, 80]
    for bad in ("80", "80:x", "1-3:5-6", "80:*"):
        with pytest.raises(UsageError):
            Policy(ports=bad)


def test_addresses_that_mean_others() -> None:
    assert [str(plain(ip_address(a))) for a in ("::ffff:10.0.0.1", "0.0.0.0", "::", "::1")] == [
        "10.0.0.1", "127.0.0.1", "::1", "::1",
    ]  # fmt: skip


# --- messages of nameservers ----------------------------------------------------------------------


@settings(max_examples=200)
@given(st.binary(max_size=80), st.booleans())
def test_any_message_is_read_or_refused(message: bytes, question: bool) -> None:
    if question:
        message = rules_names.make_question("a.test", 1, 7) + message
        message = message[:6] + b"\0\3" + message[8:]
    try:
        name, addresses, ttl = rules_names.answers(message)
    except ValueError:
        return
    assert isinstance(name, str) and ttl >= 0 and all(a.version in (4, 6) for a in addresses)


def test_only_the_chain_from_the_question_counts() -> None:
    def name(text: str) -> bytes:
        return b"".join(bytes([len(x)]) + x.encode() for x in text.split(".")) + b"\0"

    def record(owner: str, kind: int, data: bytes) -> bytes:
        return name(owner) + b"\0" + bytes([kind]) + b"\0\1\0\0\0\5\0" + bytes([len(data)]) + data

    query = rules_names.make_question("a.test", 1, 7)
    records = [
        record("a.test", 5, name("b.test")),
        record("b.test", 1, b"\1\2\3\4"),
        record("victim.test", 1, b"\6\6\6\6"),
    ]
    message = query[:6] + b"\0\3" + query[8:] + b"".join(records)
    asked, addresses, ttl = rules_names.answers(message)
    assert (asked, [str(a) for a in addresses], ttl) == ("a.test", ["1.2.3.4"], 5)
