"""The demo, the examples and the code of the tutorial run as they stand."""

from __future__ import annotations

from pathlib import Path

from harness import Runner

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLES = DOCS / "examples"


def test_demo(runner: Runner) -> None:
    result = runner.umvm(["bash", str(DOCS / "demo.sh")])
    shown = result.ok()
    assert shown.count("\n$ umvm ") >= 8
    for text in ("Hello, umvm!", "\nmars\n", "memory", "first"):
        assert text in shown
    assert result.stderr == ""


def test_nodename(runner: Runner) -> None:
    path = EXAMPLES / "nodename.py"
    result = runner.umvm(
        "uname -n; uname -s; umvm rmmod nodename; uname -n", modules=[f"{path},name=venus"]
    )
    inside, system, after = result.ok().splitlines()
    assert (inside, system) == ("venus", "Linux") and after != "venus"
