"""Extended attributes of an inode, with the rules of the VFS for their name spaces.

**Source**: xattr(7), xattr_permission() and xattr_resolve_name() of fs/xattr.c,
cap_inode_setxattr() of security/commoncap.c. The name spaces are tmpfs's but `system.` (ACLs).
"""

from __future__ import annotations

import errno
import os
import stat

from umvm.interfaces.filesystem import caller

from .nodes import Node

_NAME_MAX = 255
_SIZE_MAX = 65536
_CREATE, _REPLACE = 1, 2
_SPACES = (b"user.", b"trusted.", b"security.")


def _no(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def _check(node: Node, name: bytes, write: bool) -> None:
    """Refuse what the VFS refuses, in its order."""
    if not 0 < len(name) <= _NAME_MAX:
        raise _no(errno.ERANGE)
    trusted = name.startswith(b"trusted.")
    if trusted and caller().uid:
        raise _no(errno.EPERM if write else errno.ENODATA)
    if name.startswith(b"user."):
        if node.kind not in (stat.S_IFREG, stat.S_IFDIR):
            raise _no(errno.EPERM if write else errno.ENODATA)
        sticky = node.kind == stat.S_IFDIR and node.mode & stat.S_ISVTX
        if write and sticky and caller().uid not in (0, node.uid):
            raise _no(errno.EPERM)
    if not name.startswith(_SPACES):
        raise _no(errno.EOPNOTSUPP)
    if name in _SPACES:
        raise _no(errno.EINVAL)
    if write and name.startswith(b"security.") and caller().uid:
        raise _no(errno.EPERM)


def get(node: Node, name: bytes) -> bytes:
    """The value. **Errors** ENODATA: there is none; as `_check`."""
    _check(node, name, False)
    value = (node.xattrs or {}).get(name)
    if value is None:
        raise _no(errno.ENODATA)
    return value


def put(node: Node, name: bytes, value: bytes, flags: int) -> None:
    """Set it. **Errors** E2BIG: over 64 KiB; EEXIST, ENODATA: `flags`; as `_check`."""
    if flags & ~(_CREATE | _REPLACE):
        raise _no(errno.EINVAL)
    if not 0 < len(name) <= _NAME_MAX:
        raise _no(errno.ERANGE)
    if len(value) > _SIZE_MAX:
        raise _no(errno.E2BIG)
    _check(node, name, True)
    known = node.xattrs is not None and name in node.xattrs
    if known and flags & _CREATE:
        raise _no(errno.EEXIST)
    if not known and flags & _REPLACE:
        raise _no(errno.ENODATA)
    if node.xattrs is None:
        node.xattrs = {}
    node.xattrs[name] = bytes(value)
    node.changed()


def names(node: Node) -> list[bytes]:
    """The names that the caller may see."""
    hide = b"trusted." if caller().uid else b"\0"
    return [name for name in node.xattrs or () if not name.startswith(hide)]


def remove(node: Node, name: bytes) -> None:
    """Remove it. **Errors** ENODATA: there is none; as `_check`."""
    _check(node, name, True)
    if not node.xattrs or name not in node.xattrs:
        raise _no(errno.ENODATA)
    del node.xattrs[name]
    node.changed()
