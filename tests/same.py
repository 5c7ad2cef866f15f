"""The type of the fixture `same` of the programs' tests."""

from __future__ import annotations

from typing import Protocol


class Same(Protocol):
    """`same(script, "git", …)`: run a script in an empty directory, on the host and in a served one.

    Output (errors included) and status must agree, and the status be 0. Skipped where one of the
    tools that are named isn't installed. `shell` runs the script. Returns the output.
    """

    def __call__(self, script: str, *tools: str, shell: str = "bash") -> str: ...
