"""The system call table against the kernel's header and its own rules."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from umvm.syscalls import docs, table
from umvm.syscalls.row import CONDITIONS
from umvm.syscalls.table import ROWS, Verdict

HEADER = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
DOCUMENT = Path(__file__).parents[2] / "docs" / "syscalls.md"


@pytest.mark.skipif(not HEADER.exists(), reason="no x86-64 kernel headers")
def test_every_call_of_the_header_is_in_the_table() -> None:
    known = re.findall(r"^#define __NR_(\w+)\s+(\d+)\s*$", HEADER.read_text(), re.MULTILINE)
    assert len(known) > 300
    native = {name: int(number) for name, number in known}
    ours = {row.name: row.nr for row in ROWS if row.name in native}
    assert ours == native
    assert all(table.BY_NR[number].name == name for name, number in native.items())


def test_every_number_is_there_once() -> None:
    numbers = [row.nr for row in ROWS]
    assert numbers == [*range(337), *range(424, 472)]
    assert len(table.BY_NAME) == len(ROWS)


def test_rows_are_well_formed() -> None:
    for row in ROWS:
        kinds = row.args.split()
        assert set(kinds) <= table.ARG_KINDS and len(kinds) <= 6, row
        assert row.when in ("", *CONDITIONS), row
        assert not row.when or row.verdict is Verdict.TRAPPED, row


def test_refused_rows_say_which_error_and_why() -> None:
    for row in ROWS:
        if row.verdict is Verdict.REFUSED:
            assert 0 < row.errno < 4096 and row.note, row
        else:
            assert row.errno == 0, row


def test_no_path_goes_to_the_kernel_unseen() -> None:
    for row in ROWS:
        if {"path", "dirfd"} & set(row.args.split()):
            assert row.verdict is not Verdict.HARMLESS, row


def test_calls_around_the_view_are_refused() -> None:
    for name in ("io_uring_setup", "io_submit", "open_by_handle_at", "open_tree", "bpf"):
        assert table.nr(name) in table.refused()


def test_accessors_divide_the_table() -> None:
    parts = (table.trapped_numbers(), table.harmless_numbers(), frozenset(table.refused()))
    assert sum(map(len, parts)) == len(ROWS)
    assert frozenset().union(*parts) == frozenset(table.BY_NR)
    assert table.nr("openat") == 257
    with pytest.raises(KeyError):
        table.nr("no_such_call")


def test_document_is_up_to_date() -> None:
    assert DOCUMENT.read_text() == docs.markdown(), "run python3 -m umvm.syscalls.docs"
