"""Mount options as arguments of an Operations class."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from umvm.errors import UsageError
from umvm.interfaces import fuse_options

PREFIX = "arg."

_WORDS = {"1": True, "yes": True, "true": True, "on": True, "": True,
          "0": False, "no": False, "false": False, "off": False}  # fmt: skip


def arguments(maker: Callable[..., Any], options: Mapping[str, str]) -> dict[str, Any]:
    """Convert options to keyword arguments of `maker`.

    **Errors** UsageError: an argument is missing or malformed; OptionError: nobody knows an option.
    """
    try:
        parameters = dict(inspect.signature(maker).parameters)
    except (TypeError, ValueError):
        parameters = {}  # a class of C has no signature
    named = {
        name: parameter
        for name, parameter in parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    anything = any(p.kind == p.VAR_KEYWORD for p in parameters.values())
    given = {key.removeprefix(PREFIX): text for key, text in options.items()}
    title = getattr(maker, "__name__", str(maker))
    unknown = {key: text for key, text in given.items() if key not in named}
    if not anything:
        own = f"{', '.join(named)} (of {title}), " if named else ""
        fuse_options.refuse_unknown(unknown, own)
    missing = [name for name, p in named.items() if p.default is p.empty and name not in given]
    if missing:
        raise UsageError(f"{title} needs -o {','.join(f'{name}=…' for name in missing)}")
    hints = _hints(maker)
    values: dict[str, Any] = dict(unknown)
    for name, text in given.items():
        if name in named:
            values[name] = _convert(name, text, _kinds(named[name], hints.get(name)))
    return values


def _hints(maker: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of what is called; those that can't be evaluated are left out."""
    called = inspect.getattr_static(maker, "__init__") if isinstance(maker, type) else maker
    try:
        return typing.get_type_hints(called)
    except Exception:
        return {}


def _kinds(parameter: inspect.Parameter, hint: Any) -> tuple[type, ...]:
    """The types a parameter may have, from its annotation, else from its default."""
    if hint is None:
        default = parameter.default
        return () if default in (None, parameter.empty) else (type(default),)
    options = typing.get_args(hint) if _is_union(hint) else (hint,)
    return tuple(kind for kind in options if isinstance(kind, type))


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _convert(name: str, text: str, kinds: tuple[type, ...]) -> Any:
    """Convert to the first of `kinds` that takes the text; str takes any, so it comes last."""
    if type(None) in kinds and text.lower() == "none":
        return None
    for kind in sorted(kinds, key=lambda kind: kind is str):
        converter = _CONVERTERS.get(kind)
        if converter is None:
            continue
        try:
            return converter(text)
        except (ValueError, KeyError):
            continue
    if kinds and all(kind in _CONVERTERS for kind in kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise UsageError(f"option {name}={text}: {wanted} expected")
    return text


_CONVERTERS: dict[type, Callable[[str], Any]] = {
    bool: lambda text: _WORDS[text.lower()],
    int: lambda text: int(text, 0),
    float: float,
    bytes: lambda text: text.encode("utf-8", "surrogateescape"),
    str: str,
}
