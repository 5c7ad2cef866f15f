"""Calls that depend on who the guests are: what fills umvm.syscalls.identity.CALLS."""

from __future__ import annotations

from umvm.syscalls import hostname, limits, owners, peers, privilege, procowner, signals
from umvm.syscalls.identity import CALLS

PARTS = (hostname, limits, owners, peers, privilege, procowner, signals)

__all__ = ["CALLS", "PARTS"]
