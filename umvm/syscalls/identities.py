"""Calls that depend on who the guests are: what fills umvm.syscalls.identity.CALLS."""

from __future__ import annotations

from umvm.syscalls import hostname, limits, peers, privilege, signals
from umvm.syscalls.identity import CALLS

PARTS = (hostname, limits, peers, privilege, signals)

__all__ = ["CALLS", "PARTS"]
