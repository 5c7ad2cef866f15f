"""Real work natively, in a VM by either engine, and by PRoot: `./dev bench realwork`.

All but the native runs find what they work on at another path: `--view bind` binds the work
directory to another one, `--view root` has a root directory of its own, to which the host's /usr,
/etc and the like are bound. The ways are interleaved; printed are medians as ratios to the native
ones, with the spread (the quartiles). `--write` makes docs/realwork.md and docs/realwork.svg of it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from realwork_chart import chart
from realwork_set import PATH, WORK, Work, missing, prepare

DOCS = Path(__file__).parent.parent / "docs"
WAYS = ("native", "agent", "notify", "proot")
PLACE = "/mnt"
SYSTEM = ("usr", "etc", "dev", "proc", "tmp", "var", "opt", "sys")
ENVIRONMENT = {**os.environ, "PATH": PATH, "LC_ALL": "C"}
Times = dict[str, dict[str, list[float]]]


def prefixes(view: str, work: Path, scratch: Path) -> dict[str, list[str]]:
    """How to run a command by each way, and in `PLACE` (native: in the work directory)."""
    root = scratch / "root"
    binds = [(str(work), PLACE)]
    umvm, proot = [sys.executable, "-m", "umvm", "run"], ["proot"]
    if view == "root":
        root.mkdir()
        for name in ("bin", "sbin", "lib", "lib64", "lib32"):
            if os.path.islink(f"/{name}"):
                (root / name).symlink_to(os.readlink(f"/{name}"))
            elif os.path.isdir(f"/{name}"):
                binds.append((f"/{name}", f"/{name}"))
        binds += [(f"/{name}", f"/{name}") for name in SYSTEM if os.path.isdir(f"/{name}")]
        for _, target in binds:
            (root / target[1:]).mkdir()
        umvm += ["--root", str(root)]
        proot += ["-r", str(root)]
    for source, target in binds:
        umvm += ["--bind", f"{source}:{target}"]
        proot += ["-b", f"{source}:{target}"]
    engines = {engine: [*umvm, "--engine", engine, "--"] for engine in ("agent", "notify")}
    return {"native": [], **engines, "proot": proot}


def measure(prefix: list[str], script: str, place: str) -> float:
    """Milliseconds that a script takes in a directory, without the start of the VM."""
    timed = f"cd {place} && s=$(date +%s%N) && {{ {script}; }} >&2 && echo $(($(date +%s%N) - s))"
    done = subprocess.run(
        [*prefix, "/bin/bash", "-c", timed], check=True, stdout=subprocess.PIPE, timeout=300,
        stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    return int(done.stdout.split()[-1]) / 1e6


def rounds(rows: Iterable[Work], ways: dict[str, list[str]], work: Path, count: int) -> Times:
    """All rows by all ways, `count` times."""
    times: Times = {row.name: {way: [] for way in ways} for row in rows}
    for number in range(count + 1):
        for row in rows:
            for way, prefix in ways.items():
                place = PLACE if prefix else str(work)
                took = measure(prefix, row.script, place)
                if number:  # in the first round programs are analysed, and files read
                    times[row.name][way].append(took)
        if not number:
            time.sleep(5)
    return times


def ratios(times: dict[str, list[float]], way: str) -> list[float]:
    """Those of each round to the native median."""
    base = statistics.median(times["native"])
    return [took / base for took in times[way]]


def cell(values: list[float]) -> str:
    """The median, and the quartiles."""
    if len(values) < 3:
        return f"{statistics.median(values):.2f}"
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def table(times: Times, absent: dict[str, list[str]], ways: list[str]) -> str:
    """The rows in Markdown, the geometric mean last."""
    lines = [
        "| what | native | " + " | ".join(f"{way} x" for way in ways) + " |",
        "|---|---|" + "---|" * len(ways),
    ]
    for name, row in times.items():
        native = statistics.median(row["native"])
        cells = " | ".join(cell(ratios(row, way)) for way in ways)
        lines.append(f"| {name} | {native:.0f} ms | {cells} |")
    for name, programs in absent.items():
        lines.append(f"| {name} | no {', '.join(programs)} here |" + " |" * len(ways))
    means = [
        statistics.geometric_mean([statistics.median(ratios(row, way)) for row in times.values()])
        for way in ways
    ]
    lines.append("| geometric mean | | " + " | ".join(f"{mean:.2f}" for mean in means) + " |")
    return "\n".join(lines) + "\n"


def machine() -> str:
    """What it was measured on."""
    load = os.getloadavg()[1]
    return (
        f"Linux {platform.release()}, {platform.machine()}, {os.cpu_count()} processors "
        f"(load {load:.1f}), Python {platform.python_version()}, {time.strftime('%d %B %Y')}"
    )


def main() -> None:
    """Measure, print, and write if that is wanted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--view", choices=("bind", "root"), default="root")
    parser.add_argument("--only", action="append", default=[], metavar="ROW")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = [row for row in WORK if not options.only or row.name in options.only]
    absent = {row.name: missing(row) for row in rows if missing(row)}
    rows = [row for row in rows if row.name not in absent]
    with tempfile.TemporaryDirectory(dir="/var/tmp") as scratch:
        work = Path(scratch) / "work"
        work.mkdir()
        prepare(work)
        ways = prefixes(options.view, work, Path(scratch))
        wanted = [way for way in options.ways.split(",") if way != "proot" or shutil.which(way)]
        times = rounds(rows, {way: ways[way] for way in wanted}, work, options.rounds)
    if options.json:
        print(json.dumps(times, indent=2))
        return
    others = [way for way in wanted if way != "native"]
    text = table(times, absent, others)
    print(text)
    if options.write:
        note = f"{options.rounds} rounds, view `{options.view}`. {machine()}."
        (DOCS / "realwork.md").write_text(
            f"# Real work\n\nWritten by `./dev bench realwork -- --write`: medians as ratios to "
            f"the host, and the quartiles.\n{note}\n\n![bar chart](realwork.svg)\n\n{text}"
        )
        bars = {
            name: {way: statistics.median(ratios(row, way)) for way in others}
            for name, row in times.items()
        }
        (DOCS / "realwork.svg").write_text(chart(bars, others))


if __name__ == "__main__":
    main()
