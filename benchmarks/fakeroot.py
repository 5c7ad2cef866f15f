"""Work on many files as root who isn't: fakeroot (both kinds), PRoot -0 and `umvm run --fakeroot`.

Runs are interleaved; the medians are printed in ms, without the time that starting takes, which is
a row of its own. `python benchmarks/fakeroot.py [--rounds N] [--files N]`.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

UMVM = [sys.executable, "-m", "umvm", "run", "--fakeroot"]
TIMED = "b=$(date +%s%N); {work} >/dev/null || exit 1; e=$(date +%s%N); echo $(((e - b) / 1000))"
CONTROL = "Package: p\nVersion: 1\nArchitecture: all\nMaintainer: m <m@x>\nDescription: d\n"
WORK = {
    "tar x": "rm -rf out; mkdir out; tar xpf tree.tar -C out --same-owner --numeric-owner",
    "ls -lR": "ls -lR out",
    "chown -R": "chown -R 5:6 out",
    "chmod -R": "chmod -R go-w out",
    "find -uid": "find out -uid 5",
    "tar c": "tar cf again.tar out",
    "cp -a": "rm -rf copy; cp -a out copy",
    "dpkg-deb": "dpkg-deb -Znone --build package package.deb",
    "rm -rf": "rm -rf out copy",
}


def commands() -> dict[str, list[str]]:
    """Ways to be root, as far as they are installed."""
    found: dict[str, list[str]] = {"native": []}
    for name, command in {
        "fakeroot": ["fakeroot-sysv", "--"],
        "fakeroot-tcp": ["fakeroot-tcp", "--"],
        "proot -0": ["proot", "-0"],
    }.items():
        if shutil.which(command[0]):
            found[name] = command
    found["notify"] = [*UMVM, "--engine", "notify", "--"]
    found["agent"] = [*UMVM, "--engine", "agent", "--"]
    return found


def prepare(place: Path, files: int) -> None:
    """A tree of files, as an archive and as a package."""
    package = place / "package"
    (package / "DEBIAN").mkdir(parents=True, mode=0o755)
    (package / "DEBIAN" / "control").write_text(CONTROL)
    for number in range(files):
        directory = package / "usr" / f"d{number // 50}"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"f{number}").write_bytes(b"x" * (number % 50 * 80))
    owner = ["--owner=33", "--group=44"]
    subprocess.run(["tar", "cf", "tree.tar", *owner, "package/usr"], cwd=place, check=True)


def measure(prefix: list[str], work: str, place: Path) -> float:
    """ms that a piece of work takes, told by the shell that does it."""
    script = TIMED.format(work=f"{{ {work}; }}")
    done = subprocess.run(
        [*prefix, "sh", "-c", script], cwd=place, check=True, capture_output=True, text=True
    )
    return int(done.stdout.split()[-1]) / 1000


def start(prefix: list[str]) -> float:
    """ms until `true` has run."""
    begin = time.perf_counter()
    subprocess.run([*prefix, "true"], check=True)
    return (time.perf_counter() - begin) * 1000


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--files", type=int, default=3000)
    options = parser.parse_args()
    ways = commands()
    work = {k: v for k, v in WORK.items() if k != "dpkg-deb" or shutil.which("dpkg-deb")}
    times: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        prepare(place, options.files)
        for _ in range(options.rounds):
            for way, prefix in ways.items():
                times.setdefault(("start", way), []).append(start(prefix))
                for what, text in work.items():
                    try:
                        times.setdefault((what, way), []).append(measure(prefix, text, place))
                    except subprocess.CalledProcessError:
                        continue  # real owners, by somebody who isn't root
    print(f"{'ms':10}", *(f"{way:>13}" for way in ways), sep="")
    for what in ("start", *work):
        middles = (times.get((what, way)) for way in ways)
        print(
            f"{what:10}",
            *(f"{statistics.median(m):13.1f}" if m else f"{'-':>13}" for m in middles),
            sep="",
        )


if __name__ == "__main__":
    main()
