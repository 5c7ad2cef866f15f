"""Socket options of AF_INET and AF_INET6 sockets: kept for those who ask, few of them do anything.

SOL_SOCKET options are the kernel's own on the AF_UNIX socket, but those that would tell what it is.
**Source**: socket(7), tcp(7), ip(7), ipv6(7); net/ipv4/tcp.c, ip_sockglue.c of Linux 6.18.
"""

from __future__ import annotations

import errno
import socket
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

from umvm import Reply

from .address import fail

if TYPE_CHECKING:
    from core_accel.fabric import SocketState
    from umvm import Request

    from .inet import InetSocket

DONE = Reply.value(0)
SOL_IP, SOL_TCP, SOL_UDP, SOL_IPV6, SOL_UDPLITE = 0, 6, 17, 41, 136
SO_REUSEADDR, SO_TYPE, SO_ERROR, SO_BROADCAST, SO_PEERCRED = 2, 3, 4, 6, 17
SO_REUSEPORT, SO_BINDTODEVICE, SO_PROTOCOL, SO_DOMAIN, SO_ACCEPTCONN = 15, 25, 38, 39, 30
SO_PASSCRED, SO_PASSSEC, SO_MARK, SO_ZEROCOPY, SO_INCOMING_CPU = 16, 34, 36, 60, 49
SO_PEERNAME, SO_PEERGROUPS, SO_PASSPIDFD, SO_PEERPIDFD = 28, 59, 76, 77
TCP_INFO, TCP_MAXSEG, TCP_CONGESTION, TCP_KEEPIDLE = 11, 2, 13, 4
IPV6_V6ONLY, IPV6_PKTINFO, IPV6_RECVPKTINFO = 26, 50, 49
IP_PKTINFO, IP_TOS, IP_TTL = 8, 1, 2
IP_ADD_MEMBERSHIP, IP_DROP_MEMBERSHIP, IP_MULTICAST_IF, IP_MULTICAST_LOOP = 35, 36, 32, 34
IPV6_JOIN_GROUP, IPV6_LEAVE_GROUP, IPV6_MULTICAST_LOOP = 20, 21, 19
MCAST_JOIN_GROUP, MCAST_LEAVE_GROUP = 42, 45
TCP_ESTABLISHED, TCP_CLOSE, TCP_LISTEN = 1, 7, 10
MSS = 65483
"""As over the loopback interface."""


class Option(NamedTuple):
    """An option that holds an int: what it is at first, what it may be."""

    first: int = 0
    low: int = -(1 << 31)
    high: int = (1 << 31) - 1
    flag: bool = False
    """Any value but 0 is read back as 1."""


_FLAG = Option(flag=True)

KNOWN: dict[tuple[int, int], Option] = {
    **{
        (SOL_TCP, number): option
        for number, option in {
            1: _FLAG,  # TCP_NODELAY
            TCP_MAXSEG: Option(MSS, 88, 32767),
            3: _FLAG,  # TCP_CORK
            TCP_KEEPIDLE: Option(7200, 1, 32767),
            5: Option(75, 1, 32767),  # TCP_KEEPINTVL
            6: Option(9, 1, 127),  # TCP_KEEPCNT
            7: Option(6, 1, 127),  # TCP_SYNCNT
            8: Option(60, -1),  # TCP_LINGER2
            9: Option(0, 0),  # TCP_DEFER_ACCEPT
            10: Option(65535, 0),  # TCP_WINDOW_CLAMP
            12: Option(1, 0),  # TCP_QUICKACK
            18: Option(0, 0),  # TCP_USER_TIMEOUT
            23: Option(0, 0),  # TCP_FASTOPEN
            25: Option(),  # TCP_NOTSENT_LOWAT
            30: _FLAG,  # TCP_FASTOPEN_CONNECT
            36: Option(0, 0, 1),  # TCP_INQ
        }.items()
    },
    **{
        (SOL_IP, number): option
        for number, option in {
            IP_TOS: Option(0, 0, 255),
            IP_TTL: Option(64, -1, 255),
            3: _FLAG,  # IP_HDRINCL
            6: _FLAG,  # IP_RECVOPTS
            7: _FLAG,  # IP_RETOPTS
            IP_PKTINFO: _FLAG,
            10: Option(1, 0, 5),  # IP_MTU_DISCOVER
            11: _FLAG,  # IP_RECVERR
            12: _FLAG,  # IP_RECVTTL
            13: _FLAG,  # IP_RECVTOS
            15: _FLAG,  # IP_FREEBIND
            20: _FLAG,  # IP_RECVORIGDSTADDR
            24: _FLAG,  # IP_BIND_ADDRESS_NO_PORT
            33: Option(1, -1, 255),  # IP_MULTICAST_TTL
            IP_MULTICAST_LOOP: Option(1, flag=True),
            49: Option(1, flag=True),  # IP_MULTICAST_ALL
            50: Option(0, 0),  # IP_UNICAST_IF
        }.items()
    },
    **{
        (SOL_IPV6, number): option
        for number, option in {
            16: Option(64, -1, 255),  # IPV6_UNICAST_HOPS
            17: Option(0, 0),  # IPV6_MULTICAST_IF
            18: Option(1, -1, 255),  # IPV6_MULTICAST_HOPS
            IPV6_MULTICAST_LOOP: Option(1, 0, 1),
            23: Option(1, 0, 5),  # IPV6_MTU_DISCOVER
            25: _FLAG,  # IPV6_RECVERR
            IPV6_V6ONLY: _FLAG,
            IPV6_RECVPKTINFO: _FLAG,
            51: _FLAG,  # IPV6_RECVHOPLIMIT
            66: _FLAG,  # IPV6_RECVTCLASS
            67: Option(0, -1, 255),  # IPV6_TCLASS
            70: Option(0, 0),  # IPV6_AUTOFLOWLABEL
            72: Option(0, 0),  # IPV6_ADDR_PREFERENCES
        }.items()
    },
    (socket.SOL_SOCKET, SO_REUSEPORT): _FLAG,
    (socket.SOL_SOCKET, SO_ZEROCOPY): Option(0, 0, 1),
    (socket.SOL_SOCKET, SO_INCOMING_CPU): Option(0),
    (SOL_UDPLITE, 10): Option(8, 0, 65535),  # UDPLITE_SEND_CSCOV
    (SOL_UDPLITE, 11): Option(0, 0, 65535),  # UDPLITE_RECV_CSCOV
    (SOL_UDP, 1): _FLAG,  # UDP_CORK
    (SOL_UDP, 103): Option(0, 0, 65535),  # UDP_SEGMENT
    (SOL_UDP, 104): _FLAG,  # UDP_GRO
}
TABLE = {key: (o.first, o.low, o.high, o.flag) for key, o in KNOWN.items()}
"""The same for the engine."""
_SET_ONLY_FOR_US = frozenset((SO_PASSCRED, SO_PASSSEC, SO_PASSPIDFD))
"""Options that change what an AF_UNIX socket receives; of no effect on others."""
_LEVELS: dict[int, tuple[int, ...]] = {
    socket.AF_INET: (SOL_IP,),
    socket.AF_INET6: (SOL_IPV6, SOL_IP),
}


def _levels(sock: InetSocket) -> tuple[int, ...]:
    return (*_LEVELS[sock.family], sock.protocol)


class Options:
    """The options that were set on a socket: by (level, number)."""

    def __init__(self, state: SocketState) -> None:
        self._state = state
        self._others: dict[tuple[int, int], Any] = {}

    def get(self, key: tuple[int, int], default: Any = None) -> Any:
        """The value of an option."""
        value = self._state.kept(*key)
        return self._others.get(key, default) if value is None else value

    def __setitem__(self, key: tuple[int, int], value: Any) -> None:
        if not (isinstance(value, int) and self._state.keep(*key, value)):
            self._others[key] = value
            self._state.set_more()

    def inherit(self, other: Options) -> None:
        """Have what another socket has."""
        self._state.copy_kept(other._state)
        for key, value in other._others.items():
            self[key] = value


# --- setsockopt ----------------------------------------------------------------------------------


def set_option(sock: InetSocket, req: Request) -> Reply | None:
    """setsockopt(2). **Errors** ENOPROTOOPT, EINVAL, EFAULT."""
    level, number = req.args[1] & 0xFFFFFFFF, req.args[2] & 0xFFFFFFFF
    pointer, size = req.args[3], _signed(req.args[4])
    if size < 0:
        raise fail(errno.EINVAL)
    if level == socket.SOL_SOCKET:
        if number in (SO_REUSEADDR, SO_BROADCAST) and size >= 4:
            sock.note(number, _int(req, pointer, size))
            return None
        if number in _SET_ONLY_FOR_US:
            return DONE
        if number == SO_BINDTODEVICE:
            return _bind_to_device(sock, req, pointer, size)
        if (level, number) not in KNOWN:
            return None
    elif level not in _levels(sock):
        raise fail(errno.ENOPROTOOPT)
    special = sock.special_option(req, level, number, pointer, size)
    if special is not None:
        return special
    if (level, number) == (SOL_TCP, TCP_CONGESTION):
        return _congestion(sock, req, pointer, size)
    option = KNOWN.get((level, number))
    if option is None:
        raise fail(errno.ENOPROTOOPT)
    value = _int(req, pointer, size)
    if not option.low <= value <= option.high:
        raise fail(errno.EINVAL)
    if number == IPV6_V6ONLY and level == SOL_IPV6 and sock.bound is not None:
        raise fail(errno.EINVAL)
    sock.options[level, number] = int(bool(value)) if option.flag else value
    return DONE


def _int(req: Request, pointer: int, size: int) -> int:
    if size >= 4:
        value: int = struct.unpack("<i", req.read(pointer, 4))[0]
        return value
    if size < 1:
        raise fail(errno.EINVAL)
    return req.read(pointer, 1)[0]


def _bind_to_device(sock: InetSocket, req: Request, pointer: int, size: int) -> Reply:
    name = req.read(pointer, min(size, 15)).split(b"\0")[0]
    if name and name not in (b"lo", b"eth0"):
        raise fail(errno.ENODEV)
    sock.options[socket.SOL_SOCKET, SO_BINDTODEVICE] = name
    return DONE


def _congestion(sock: InetSocket, req: Request, pointer: int, size: int) -> Reply:
    name = req.read(pointer, min(size, 15)).split(b"\0")[0]
    if name not in (b"cubic", b"reno", b"bbr"):
        raise fail(errno.ENOENT)
    sock.options[SOL_TCP, TCP_CONGESTION] = name
    return DONE


# --- getsockopt ----------------------------------------------------------------------------------


def get_option(sock: InetSocket, req: Request) -> Reply | None:
    """getsockopt(2). **Errors** ENOPROTOOPT, EINVAL, EFAULT."""
    level, number = req.args[1] & 0xFFFFFFFF, req.args[2] & 0xFFFFFFFF
    if level == socket.SOL_SOCKET:
        own = _of_socket(sock, number)
        if own is None:
            return None
        return _answer(req, own)
    if level not in _levels(sock):
        raise fail(errno.EOPNOTSUPP)
    if level == SOL_TCP and number == TCP_INFO:
        return _answer(req, tcp_info(sock))
    if level == SOL_TCP and number == TCP_CONGESTION:
        name: bytes = sock.options.get((level, number), b"cubic")
        return _answer(req, name.ljust(16, b"\0"))
    if level == SOL_IP and number == 14:  # IP_MTU
        if sock.peer is None:
            raise fail(errno.ENOTCONN)
        return _answer(req, struct.pack("<i", 65536))
    if level == SOL_IP and number == IP_MULTICAST_IF:
        return _answer(req, sock.options.get((level, number), b"\0" * 4))
    option = KNOWN.get((level, number))
    if option is None:
        raise fail(errno.ENOPROTOOPT)
    value = sock.options.get((level, number), option.first)
    if number == IP_TTL and level == SOL_IP and value == -1:
        value = 64
    if number == IPV6_V6ONLY and level == SOL_IPV6:
        value = int(sock.v6only)
    return _answer(req, struct.pack("<i", value))


def _of_socket(sock: InetSocket, number: int) -> bytes | None:
    """What SOL_SOCKET options say that the AF_UNIX socket would say wrong."""
    if number == SO_DOMAIN:
        return struct.pack("<i", sock.family)
    if number == SO_PROTOCOL:
        return struct.pack("<i", sock.protocol)
    if number == SO_ERROR and sock.error:
        error, sock.error = sock.error, 0
        return struct.pack("<i", error)
    if number == SO_PEERCRED:
        return struct.pack("<iii", 0, -1, -1)
    if number in (SO_PEERGROUPS, SO_PEERPIDFD):
        raise fail(errno.ENODATA)
    if number == SO_BINDTODEVICE:
        name: bytes = sock.options.get((socket.SOL_SOCKET, number), b"")
        return name + b"\0" if name else b""
    if (socket.SOL_SOCKET, number) in KNOWN:
        return struct.pack("<i", sock.options.get((socket.SOL_SOCKET, number), 0))
    return None


def _answer(req: Request, data: bytes) -> Reply:
    (room,) = struct.unpack("<i", req.read(req.args[4], 4))
    if room < 0:
        raise fail(errno.EINVAL)
    data = data[:room]
    req.write(req.args[4], struct.pack("<i", len(data)))
    req.write(req.args[3], data)
    return DONE


def tcp_info(sock: InetSocket) -> bytes:
    """struct tcp_info as far as people look at it: the state, and numbers of a fast network."""
    state = TCP_ESTABLISHED if sock.peer else TCP_LISTEN if sock.listening else TCP_CLOSE
    head = struct.pack("<8B", state, 0, 0, 0, 0, 7, 0x77, 0)
    # rto, ato, snd_mss, rcv_mss, unacked, sacked, lost, retrans, fackets, four times in ms,
    # pmtu, rcv_ssthresh, rtt, rttvar in µs, snd_ssthresh, snd_cwnd, advmss, reordering, …
    numbers = (
        204000, 40000, MSS, MSS, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        65535, 65483, 30, 10, (1 << 31) - 1, 10, MSS, 3, 0, 65495, 0,
    )  # fmt: skip
    return (head + struct.pack(f"<{len(numbers)}I", *numbers)).ljust(248, b"\0")


def _signed(number: int) -> int:
    number &= 0xFFFFFFFF
    return number - (1 << 32) if number & 0x80000000 else number
