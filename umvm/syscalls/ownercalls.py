"""All calls on the host's files under an identity: importing this fills their register."""

from __future__ import annotations

from umvm.syscalls import ownernames, owners, ownerxattr, procowner  # procowner after owners
from umvm.syscalls.hostfiles import CALLS

__all__ = ["CALLS", "ownernames", "owners", "ownerxattr", "procowner"]
