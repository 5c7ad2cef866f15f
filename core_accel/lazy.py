"""Loggers and patterns that cost nothing before they are used: a VM starts faster without them.

To import logging takes some 4 ms, and to compile a pattern 0.3 ms. What is made here behaves as the
real thing; the first use makes it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, AnyStr, cast

if TYPE_CHECKING:
    import logging
    import re


class _Lazy:
    """Stands for `make()`, whose methods it keeps once they were asked for."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._make(), name)
        setattr(self, name, found)
        return found


def pattern(text: AnyStr, flags: int = 0) -> re.Pattern[AnyStr]:
    """As re.compile(text, flags)."""

    def make() -> Any:
        import re

        return re.compile(text, flags)  # which remembers it

    return cast("re.Pattern[AnyStr]", _Lazy(make))


_settings: dict[str, Any] | None = None


class _LazyLogger(_Lazy):
    """Takes what nobody is to see without importing logging."""

    def debug(self, message: str, *values: Any) -> None:
        if _settings is None or _settings.get("level") != "WARNING":
            self._make().debug(message, *values)

    def info(self, message: str, *values: Any) -> None:
        if _settings is None or _settings.get("level") != "WARNING":
            self._make().info(message, *values)


def logger(name: str) -> logging.Logger:
    """As logging.getLogger(name), set up as `log_to` said."""

    def make() -> Any:
        start_logging()
        import logging

        return logging.getLogger(name)

    return cast("logging.Logger", _LazyLogger(make))


def log_to(**settings: Any) -> None:
    """Set logging up by logging.basicConfig(**settings), as soon as anybody logs."""
    global _settings
    _settings = settings


def start_logging() -> None:
    """Set logging up now; for code that doesn't get its loggers here, as that of modules."""
    global _settings
    if _settings is not None:
        import logging

        settings, _settings = _settings, None
        logging.basicConfig(**settings)
