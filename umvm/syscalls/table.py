"""The table of all x86-64 system calls, and what the filter does with each of them.

A number that isn't here is refused with ENOSYS by the filter: a call of a newer kernel stays
closed until somebody has judged it.
"""

from __future__ import annotations

from . import table_files, table_process, table_system
from .row import ARG_KINDS, MMAP_FD, Row, Verdict

__all__ = [
    "ARG_KINDS",
    "BY_NAME",
    "BY_NR",
    "MMAP_FD",
    "ROWS",
    "Row",
    "Verdict",
    "harmless_numbers",
    "nr",
    "refused",
    "trapped_numbers",
]

ROWS: tuple[Row, ...] = tuple(
    sorted(table_files.ROWS + table_process.ROWS + table_system.ROWS, key=lambda row: row.nr)
)
BY_NR: dict[int, Row] = {row.nr: row for row in ROWS}
BY_NAME: dict[str, Row] = {row.name: row for row in ROWS}


def nr(name: str) -> int:
    """The number of a call; KeyError for a name that isn't in the table."""
    return BY_NAME[name].nr


def trapped_numbers() -> frozenset[int]:
    """Numbers of the calls that go to the supervisor, always or on a condition (`Row.when`)."""
    return frozenset(row.nr for row in ROWS if row.verdict is Verdict.TRAPPED)


def harmless_numbers() -> frozenset[int]:
    """Numbers of the calls that the kernel runs unseen."""
    return frozenset(row.nr for row in ROWS if row.verdict is Verdict.HARMLESS)


def refused() -> dict[int, int]:
    """The errno for the number of each refused call."""
    return {row.nr: row.errno for row in ROWS if row.verdict is Verdict.REFUSED}
