"""The modules of the tutorial, run as they stand there, and whether the documents say it all."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from harness import UMVM, Result

from core_accel.request import Reply, Request
from umvm import hookspecs, routes
from umvm.syscalls.classes import CLASSES

ROOT = Path(__file__).parents[2]
EXAMPLES = Path(__file__).parent / "examples"
Run = Callable[..., Result]


def example(stem: str, **options: object) -> str:
    """The `-m` argument for a module of the tutorial."""
    return ",".join([str(EXAMPLES / f"{stem}.py"), *(f"{k}={v}" for k, v in options.items())])


# --- the tutorial ---------------------------------------------------------------------------------


def test_the_tutorial_shows_the_examples_as_they_are() -> None:
    text = (ROOT / "docs" / "modules.md").read_text()
    shown = dict(re.findall(r"<!-- (\w+)\.py -->\n```python\n(.*?)```", text, re.DOTALL))
    files = {path.stem: path.read_text() for path in EXAMPLES.glob("*.py")}
    assert shown == files


_INNER = ("kind", "number", "cloexec", "ip", "peek", "was_changed")
"""Members of Request and Reply that are for umvm's own families."""


def test_the_reference_is_complete() -> None:
    text = (ROOT / "docs" / "hooks.md").read_text()
    tutorial = (ROOT / "docs" / "modules.md").read_text()
    for name, hook in vars(hookspecs).items():
        if name.startswith("umvm_"):
            signature = f"`{name}({', '.join(inspect.signature(hook).parameters)})`"
            assert signature in text and signature in tutorial
    for kind, prefix in ((Request, ""), (Reply, "Reply.")):
        for name in vars(kind):
            if not name.startswith("_") and name not in _INNER:
                assert re.search(rf"`{re.escape(prefix)}{name}[`(,]", text), name
    for route in get_args(routes.Route):
        assert f"`{route.__name__}({', '.join(route._fields)})`" in text.replace(
            "function)", "handler)"
        ).replace("(object)", "(answers)"), route
    for name in CLASSES:
        assert f"`%{name}`" in text


def test_another_node_name(umvm_run: Run) -> None:
    body = "uname -n; python3 -c 'import os; print(os.uname().nodename)'; busybox uname -n"
    result = umvm_run(body, modules=[example("nodename", name="venus")])
    assert result.ok() == "venus\nvenus\nvenus\n"


def test_the_example_is_ten_lines_of_code() -> None:
    lines = (EXAMPLES / "nodename.py").read_text().partition("def ")[2].splitlines()
    assert len([line for line in lines if line.strip()]) <= 10


def test_every_third_write_fails(umvm_run: Run) -> None:
    def body() -> list[str]:
        import os

        _, end = os.pipe()
        results = []
        for _ in range(7):
            try:
                results.append(str(os.write(end, b"x")))
            except OSError as error:
                results.append(os.strerror(error.errno or 0))
        return results

    failed = "Input/output error"
    expected = ["1", "1", failed, "1", "1", failed, "1"]
    # its own output is the eighth write
    assert umvm_run(body, modules=[example("thirdwrite")]).ok() == f"result {expected}\n"


def test_every_open_is_logged(umvm_run: Run, tmp_path: Path) -> None:
    (tmp_path / "one").write_text("1")
    log = tmp_path / "opened"
    result = umvm_run(
        'cat "$0/one"; cat "$0/none"', modules=[example("openlog", file=log)], cwd=tmp_path
    )
    assert result.status == 1
    assert b"/none" in log.read_bytes()
    result = umvm_run(
        ["/bin/sh", "-c", 'cat "$0/one" "$0/none"', str(tmp_path)],
        modules=[example("openlog", file=log)],
    )
    paths = log.read_text().splitlines()
    assert paths.count(f"{tmp_path}/one") == paths.count(f"{tmp_path}/none") == 1
    assert result.stdout == "1"


def test_another_file_is_opened(umvm_run: Run, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("first\n")
    (tmp_path / "b").write_text("second\n")
    a, b = tmp_path / "a", tmp_path / "b"
    result = umvm_run(["cat", str(a), str(b)], modules=[f"{EXAMPLES}/otherfile.py,{a}={b}"])
    assert result.ok() == "second\nsecond\n"


def test_a_file_that_nobody_has(umvm_run: Run) -> None:
    result = umvm_run("cat /dev/dice /dev/dice; ls /dev/dice", modules=[example("dice")])
    assert re.fullmatch(r"[1-6]\n[1-6]\n", result.stdout)
    assert result.status != 0  # only openat(2) is answered


def test_an_answer_that_comes_later(umvm_run: Run, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("late\n")
    body = 'cat "$0/a" & echo first; wait'
    result = umvm_run(
        ["/bin/sh", "-c", body, str(tmp_path)], modules=[example("slowly", below=tmp_path)]
    )
    assert result.ok() == "first\nlate\n"


def test_errors_are_counted(umvm_run: Run, tmp_path: Path) -> None:
    out = tmp_path / "failed"
    result = umvm_run(
        ["busybox", "sh", "-c", "for i in 1 2 3; do cat /mnt/none; done 2>/dev/null; ls /mnt"],
        mounts=["memory:none:/mnt"],
        modules=[example("failing", calls="openat", file=out)],
    )
    assert result.ok() == ""
    assert out.read_text() == "3 No such file or directory\n"


def test_a_file_system_of_ones_own(umvm_run: Run) -> None:
    result = umvm_run(
        "ls -l /mnt | tail -n 1 | cut -d' ' -f1; cat /mnt/hello; cat /mnt/bye",
        modules=[example("greeting")],
        mounts=["greeting:none:/mnt:text=hey"],
    )
    assert result.stdout == "-r--r--r--\nhey\n"
    assert "No such file" in result.stderr


def test_everybody_is_nobody(umvm_run: Run, tmp_path: Path) -> None:
    result = umvm_run(
        ["/bin/sh", "-c", 'id -u; stat -c %u "$0"', str(tmp_path)], modules=[example("nobody")]
    )
    assert result.ok() == "65534\n65534\n"


# --- process events -------------------------------------------------------------------------------


def events(text: str) -> list[str]:
    """The lines of tree.py with process numbers made into letters, in order of appearance."""
    names: dict[str, str] = {}

    def name(found: re.Match[str]) -> str:
        return names.setdefault(found[0], chr(ord("A") + len(names)))

    lines = []
    for line in text.splitlines():
        pid, _, rest = line.strip().partition(" ")
        what, by, who = rest.partition("started by ")
        shown = re.sub(r"^\d+$", name, pid)
        rest = what + by + re.sub(r"^\d+$", name, who) if by else rest
        lines.append(" " * (len(line) - len(line.lstrip())) + f"{shown} {rest}")
    return lines


def test_a_process_tree(umvm_run: Run, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    result = umvm_run(
        "(busybox true; exit 3); sleep 0.2; kill -9 $$", modules=[example("tree", file=tree)]
    )
    assert result.status == 128 + 9
    lines = events(tree.read_text())
    assert [line for line in lines if "started" in line] == [
        "A started by nobody here",
        "  B started by A",
        "    C started by B",
        "  D started by A",
    ]
    shell = os.path.basename(os.path.realpath("/bin/sh"))
    happened = {name: [x.strip()[2:] for x in lines if x.strip()[0] == name] for name in "ABCD"}
    assert [what[1:] for what in happened.values()] == [
        [f"runs {shell}", "ended with -9"],
        ["ended with 3"],
        ["runs busybox", "ended with 0"],
        ["runs sleep", "ended with 0"],
    ]


def test_processes_that_were_there_before_are_not_announced(umvm_run: Run, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    umvm = " ".join(UMVM)
    body = (
        f"sleep 0.3 & {umvm} insmod '{EXAMPLES}/tree.py' file='{tree}'; wait; sh -c 'exit 4'; true"
    )
    assert umvm_run(body).status == 0
    text = tree.read_text()
    began = [line for line in events(text) if "started" in line]
    assert len(began) == 1 and " ended with 4" in text  # the last sh only
    assert text.count("ended with 0") == 3  # sleep, insmod and the first sh


def test_events_of_threads_vforks_and_many_at_once(umvm_run: Run, tmp_path: Path) -> None:
    def body() -> list[int]:
        import os
        import subprocess
        import threading

        results = []

        def work() -> None:
            for _ in range(4):
                results.append(subprocess.run(["/bin/busybox", "true"], check=False).returncode)
                pid = os.fork()
                if pid == 0:
                    os._exit(0)
                results.append(os.waitpid(pid, 0)[1])

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results

    tree = tmp_path / "tree"
    assert umvm_run(body, modules=[example("tree", file=tree)]).ok() == f"result {[0] * 32}\n"
    lines = tree.read_text().splitlines()
    started = [line.split()[0] for line in lines if " started by " in line]
    ended = [line.split()[0] for line in lines if line.endswith(" ended with 0")]
    # a child that makes no trapped call can't be seen
    assert len(started) >= 17 and sorted(started) == sorted(ended)
    assert sum(line.endswith(" runs busybox") for line in lines) == 16
