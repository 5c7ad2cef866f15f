"""Makes docs/syscalls.md from the table: `python3 -m umvm.syscalls.docs > docs/syscalls.md`."""

from __future__ import annotations

import sys
from errno import errorcode

from .table import ROWS, Row, Verdict

_HEAD = """\
# System calls

Made from `umvm/syscalls/table.py` by `python3 -m umvm.syscalls.docs`; don't edit.

- **trapped**: the supervisor decides: the kernel runs the call, or it is answered.
- **harmless**: the kernel runs the call unseen; it can't reach anything outside the view.
- **refused**: the filter answers with the error given.

Numbers that are not listed, i386 calls and x32 calls get ENOSYS.
"""


def _verdict(row: Row) -> str:
    if row.verdict is Verdict.REFUSED:
        return f"refused: {errorcode[row.errno]}"
    return str(row.verdict.value)


def markdown() -> str:
    """The whole document."""
    counts = ", ".join(
        f"{sum(row.verdict is verdict for row in ROWS)} {verdict.value}" for verdict in Verdict
    )
    lines = [_HEAD, f"{len(ROWS)} calls: {counts}."]
    for family in sorted({row.family for row in ROWS}):
        lines += ["", f"## {family}", "", "| nr | call | arguments | verdict | note |"]
        lines.append("|---:|---|---|---|---|")
        lines += [
            f"| {row.nr} | `{row.name}` | {row.args} | {_verdict(row)} | {row.note} |"
            for row in ROWS
            if row.family == family
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(markdown())
