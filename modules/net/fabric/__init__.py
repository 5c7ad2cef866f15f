"""The stack `fabric`: a virtual network between hosts, made of AF_UNIX sockets.

A stream socket of the network is an AF_UNIX stream socket, a datagram socket an AF_UNIX datagram
socket. The kernel moves the data, queues, blocks, polls and wakes; only addresses and options are
translated, here. `fabric:NAME` joins the network NAME of this user, `fabric` alone makes a network
for one VM. Options: `ip=` the host's address (several are separated by commas), by default the next
free one of 10.0.0.0/24; `name=` its name, by default the VM's.
"""

from __future__ import annotations

from typing import Any

from .stack import Fabric, make

__all__: list[Any] = ["Fabric", "make"]
