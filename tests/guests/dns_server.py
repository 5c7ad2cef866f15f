"""A nameserver for tests: `dns_server.py NAME=ADDRESS,ADDRESS… …`.

It prints its port. The answers to a name are its addresses in turn, one each time, the last for
good. Names that it doesn't have don't exist; `alias=>name` makes an alias. UDP and TCP.
"""

from __future__ import annotations

import socket
import struct
import sys
import threading


def main() -> None:
    """Serve."""
    zone = {}
    for word in sys.argv[1:]:
        name, _, value = word.partition("=")
        zone[name] = value.split(",")
    tcp = socket.create_server(("127.0.0.1", 0))
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(tcp.getsockname())
    print(tcp.getsockname()[1], flush=True)
    threading.Thread(target=serve_tcp, args=(tcp, zone), daemon=True).start()
    while True:
        query, sender = udp.recvfrom(4096)
        udp.sendto(answer(query, zone), sender)


def serve_tcp(server: socket.socket, zone: dict[str, list[str]]) -> None:
    """One query a connection."""
    while True:
        sock, _ = server.accept()
        with sock:
            query = sock.recv(4096)
            reply = answer(query[2:], zone)
            sock.sendall(struct.pack("!H", len(reply)) + reply)


def answer(query: bytes, zone: dict[str, list[str]]) -> bytes:
    """The answer to a query."""
    at, labels = 12, []
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode())
        at += 1 + query[at]
    name, kind = ".".join(labels).lower(), struct.unpack_from("!H", query, at + 1)[0]
    question = query[12 : at + 5]
    values = zone.get(name)
    records = []
    if values is not None and values[0].startswith(">"):
        target = values[0][1:]
        text = b"".join(bytes([len(x)]) + x.encode() for x in target.split(".")) + b"\0"
        records.append(b"\xc0\x0c" + struct.pack("!HHIH", 5, 1, 1, len(text)) + text)
        owner, values = text, zone[target]
    else:
        owner = b"\xc0\x0c"
    if values is not None and kind == 1:
        value = values.pop(0) if len(values) > 1 else values[0]
        packed = socket.inet_aton(value)
        records.append(owner + struct.pack("!HHIH", 1, 1, 1, 4) + packed)
    code = 0x8180 if values is not None else 0x8183
    head = query[:2] + struct.pack("!HHHHH", code, 1, len(records), 0, 0)
    return head + question + b"".join(records)


main()
