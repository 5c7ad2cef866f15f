"""The small notations of the command line: options, module specs, mount specs."""

from __future__ import annotations

import os
from typing import NamedTuple

from umvm.errors import UsageError

_NAME_MAX = 64
_NAME_MORE = "_-."  # may be in a name, beside letters and digits


class MountSpec(NamedTuple):
    """`TYPE:SOURCE:TARGET[:opts]` taken apart; a backslash keeps a colon in a field."""

    fstype: str
    source: str
    target: str
    options: dict[str, str]


def check_name(name: str) -> str:
    """Return `name` if it can name a VM (it becomes a file name)."""
    known = name.isascii() and all(c.isalnum() or c in _NAME_MORE for c in name)
    if not (known and 0 < len(name) <= _NAME_MAX and name[0] not in "-."):
        raise UsageError(f"bad name {name!r}: letters, digits, '_', '-' and '.', at most 64")
    return name


def parse_options(text: str) -> dict[str, str]:
    """Parse `a=b,flag` into `{"a": "b", "flag": ""}`; a backslash keeps a comma in a value."""
    options: dict[str, str] = {}
    for item in _split(text, ",", -1):
        if not item:
            continue
        key, _, value = item.partition("=")
        if not key:
            raise UsageError(f"option without a name: {item!r}")
        options[key] = value
    return options


def parse_module(text: str) -> tuple[str, dict[str, str]]:
    """Parse `SPEC[,opt=val…]` into the spec and its options."""
    spec, _, options = text.partition(",")
    if not spec:
        raise UsageError(f"module without a name: {text!r}")
    return absolute_spec(spec), parse_options(options)


def parse_mount(text: str) -> MountSpec:
    """Parse `TYPE:SOURCE:TARGET[:opts]`; relative paths are taken from the working directory."""
    fields = _split(text, ":", 3)
    if len(fields) < 3 or not fields[0] or not fields[2]:
        raise UsageError(f"bad mount {text!r}: expected TYPE:SOURCE:TARGET[:opts]")
    options = parse_options(fields[3]) if len(fields) == 4 else {}
    target = os.path.join(os.getcwd(), fields[2])
    return MountSpec(fields[0], absolute_source(fields[1]), target, options)


class BindSpec(NamedTuple):
    """`SRC[:DST[:opts]]` taken apart: absolute paths, DST as seen from the root of the guests."""

    source: str
    target: str
    options: dict[str, str]


def parse_bind(text: str) -> BindSpec:
    """Parse `SRC[:DST[:opts]]`; DST is SRC by default, both from the working directory."""
    fields = _split(text, ":", 2)
    source = os.path.join(os.getcwd(), fields[0])
    target = fields[1] if len(fields) > 1 and fields[1] else source
    options = parse_options(fields[2]) if len(fields) > 2 else {}
    if not fields[0] or set(options) - {"ro", "rw"}:
        raise UsageError(f"bad bind mount {text!r}: expected SRC[:DST[:ro]]")
    return BindSpec(source, os.path.join(os.getcwd(), target), options)


def parse_net(text: str) -> tuple[str, str, dict[str, str]]:
    """Parse `KIND[:ARG][,opt=val…]`: a network stack, its argument, its options.

    An item without `=` belongs to the value before it, so that a value may be a list. Options
    alone are those of the host's stack.
    """
    first, *rest = text.split(",")
    kind, _, argument = first.partition(":")
    if "=" in kind:
        kind, argument, rest = "host", "", [first, *rest]
    if not kind:
        raise UsageError(f"bad network {text!r}: expected KIND[:ARG][,opt=val]")
    options: dict[str, str] = {}
    last = ""
    for item in rest:
        key, equals, value = item.partition("=")
        if equals and key:
            options[key] = value
            last = key
        elif last:
            options[last] += f",{item}"
        else:
            raise UsageError(f"bad network {text!r}: {item!r} is no option")
    return kind, argument, options


def is_path(spec: str) -> bool:
    """Tell a module given by file from one given by name."""
    return "/" in spec or spec.endswith(".py")


def absolute_spec(spec: str) -> str:
    """Make a module spec independent of the working directory."""
    return os.path.join(os.getcwd(), spec) if is_path(spec) else spec


def absolute_source(source: str) -> str:
    """Make a mount's source independent of the working directory, where it is a file.

    `memory.py:Memory`, a class in a file, is one too.
    """
    path, colon, rest = source.partition(":")
    if path.startswith(("./", "../")) or (path and os.path.lexists(path)):
        return os.path.join(os.getcwd(), path) + colon + rest
    return source


def _split(text: str, separator: str, limit: int) -> list[str]:
    """Split at a separator that no backslash precedes, at most `limit` times."""
    fields = [""]
    at = 0
    while at < len(text):
        if text[at] == "\\" and text[at + 1 : at + 2] == separator:
            fields[-1] += separator
            at += 2
        elif text[at] == separator and len(fields) - 1 != limit:
            fields.append("")
            at += 1
        else:
            fields[-1] += text[at]
            at += 1
    return fields
