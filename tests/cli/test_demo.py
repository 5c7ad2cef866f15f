"""The demo, the examples and the code of the tutorial run as they stand."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Result, Runner

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLES = DOCS / "examples"


def blocks() -> list[str]:
    """The Python blocks of the tutorial."""
    return re.findall(r"```python\n(.*?)```", (DOCS / "modules.md").read_text(), re.DOTALL)


def test_demo(runner: Runner) -> None:
    result = runner.umvm(["bash", str(DOCS / "demo.sh")])
    shown = result.ok()
    assert shown.count("\n$ umvm ") >= 8
    for text in ("Hello, umvm!", "\nmars\n", "memory", "first"):
        assert text in shown
    assert result.stderr == ""


def test_tutorial_is_the_example() -> None:
    example = (EXAMPLES / "nodename.py").read_text()
    assert example.endswith(blocks()[0])


@pytest.mark.parametrize("source", ["example", "tutorial"])
def test_nodename(runner: Runner, tmp_path: Path, source: str) -> None:
    path = EXAMPLES / "nodename.py"
    if source == "tutorial":
        path = tmp_path / "nodename.py"
        path.write_text(blocks()[0])
    result = runner.umvm(
        "uname -n; uname -s; umvm rmmod nodename; uname -n", modules=[f"{path},name=venus"]
    )
    inside, system, after = result.ok().splitlines()
    assert (inside, system) == ("venus", "Linux") and after != "venus"


def test_tutorial_file_system(runner: Runner, tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    (tmp_path / "greet.py").write_text(blocks()[1])
    result = runner.umvm(
        "ls; cat hello; cat none; echo x >new",
        options=["-C", f"{tmp_path}/mnt"],
        modules=[str(tmp_path / "greet.py")],
        mounts=[f"greeting:none:{tmp_path}/mnt:text=hey"],
    )
    assert result.stdout == "hello\nhey"
    assert "No such file" in result.stderr and "Read-only file system" in result.stderr


def test_third_write_fails(umvm_run: Callable[..., Result]) -> None:
    body = "for i in 1 2 3 4; do echo $i || echo failed >&2; done"
    result = umvm_run(["bash", "-c", body], modules=[str(EXAMPLES / "thirdwrite.py")])
    assert "3" not in result.stdout.split()
    assert "Input/output error" in result.stderr


def test_open_log(umvm_run: Callable[..., Result], tmp_path: Path) -> None:
    log = tmp_path / "opened"
    result = umvm_run("cat /etc/hostname", modules=[f"{EXAMPLES / 'openlog.py'},file={log}"])
    assert result.ok() == Path("/etc/hostname").read_text()
    assert b"/etc/hostname" in log.read_bytes().split(b"\n")


def test_hello(umvm_run: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    mount = f"fusepy:{EXAMPLES / 'hello.py'}\\:Hello:{tmp_path}/m:name=you"
    result = umvm_run(f"ls {tmp_path}/m; cat {tmp_path}/m/hello", mounts=[mount])
    assert result.ok() == "hello\nHello, you!\n"
