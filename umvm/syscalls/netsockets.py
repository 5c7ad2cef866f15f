"""Calls on sockets that a network stack answers for; all others go on to those who knew them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from umvm.interfaces.network import Socket
from umvm.syscalls import ioctl, sockets
from umvm.syscalls.context import HANDLERS, Handler, Reply, Request, signed
from umvm.syscalls.kinds import SOCKETS

if TYPE_CHECKING:
    from umvm.vm import VirtualMachine

assert {sockets.sys_bind, ioctl.sys_ioctl} <= set(HANDLERS.values())  # those known before

Method = Callable[[Socket, Request], Reply | None]


def _accept(sock: Socket, req: Request) -> Reply | None:
    return sock.accept(req, 0)


def _accept4(sock: Socket, req: Request) -> Reply | None:
    return sock.accept(req, signed(req.args[3]))


_OTHERS: dict[str, Method] = {"accept": _accept, "accept4": _accept4}


def _method(name: str) -> Method:
    return _OTHERS.get(name) or (lambda sock, req: getattr(sock, name)(req))


def _asking(method: Method, before: Handler | None) -> Handler:
    def answer(vm: VirtualMachine, req: Request) -> Reply | None:
        sock = vm.sockets.of(req.tid, signed(req.args[0]))
        if sock is not None:
            return method(sock, req)
        return None if before is None else before(vm, req)

    return answer


for _name in SOCKETS:
    HANDLERS[_name] = _asking(_method(_name), HANDLERS.get(_name))
