"""Credentials in a VM are those that real root has on the host: ids, capabilities, exec.

`python -m pytest tests/modules/test_credentials.py --counts …` compares some hundred random
sequences of calls as root; UMVM_SEQUENCES=2000 in the environment makes it as many as you like.
"""

from __future__ import annotations

import os
import random
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import Compiler, Result, Runner
from real_root import host_capabilities, own

from umvm import capabilities
from umvm.interfaces.identity import all_capabilities

Run = Callable[..., Result]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root on the host")
SEQUENCES = int(os.environ.get("UMVM_SEQUENCES", "200"))
IDS = (0, 0, 33, 33, 34, 1000, -1)
CAPS = (0, 1, 5, 6, 7, 8, 9, 27, 33, 39, 63)
PROGRAMS = {
    "plain": (0o755, 0, 0, None),
    "setuid0": (0o4755, 0, 0, None),
    "setuid33": (0o4755, 33, 0, None),
    "setgid34": (0o2755, 0, 34, None),
    "nogroupx": (0o2745, 0, 77, None),
    "both": (0o6755, 33, 34, None),
    "caps": (0o755, 0, 0, (0xC0, 0, True)),
    "quietcaps": (0o755, 0, 0, (0x1C0, 0, False)),
    "inherit": (0o755, 0, 0, (0, 0xFF, True)),
    "setuidcaps": (0o4755, 0, 0, (0x80, 0, True)),
    "nocaps": (0o755, 0, 0, (0, 0, False)),
    "unreachable": (0o644, 0, 0, None),
}
"""Programs by name: mode, owner, group, capabilities (permitted, inheritable, effective)."""


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that everybody may reach."""
    path = Path(tempfile.mkdtemp(prefix="creds", dir="/var/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def make_programs(directory: Path, probe: Path) -> None:
    """The probe under several names, modes, owners and capabilities. Needs root."""
    for name, (mode, uid, gid, caps) in PROGRAMS.items():
        path = directory / name
        shutil.copy(probe, path)
        os.chown(path, uid, gid)
        path.chmod(mode)
        if caps is not None:
            permitted, inheritable, effective = caps
            words = (0x02000000 | effective, permitted, inheritable, 0, 0)
            os.setxattr(path, "security.capability", struct.pack("<5I", *words))


def sequence(seed: int) -> str:
    """Random calls: ids and capabilities that matter are likely."""
    choose = random.Random(seed)

    def number() -> str:
        return str(choose.choice(IDS))

    def caps() -> str:
        return hex(
            choose.choice((0, 0xC0, 0x1C0, 0x1FF, 0x80, all_capabilities(), host_capabilities()))
        )

    def step() -> str:
        kind = choose.choices(range(11), (18, 5, 6, 9, 9, 8, 9, 3, 3, 4, 1))[0]
        match kind:
            case 0:
                name = choose.choice(("setuid", "setreuid", "setresuid", "setfsuid"))
                return f"{name}:{','.join(number() for _ in range(3))}"
            case 1:
                name = choose.choice(("setgid", "setregid", "setresgid", "setfsgid"))
                return f"{name}:{','.join(number() for _ in range(3))}"
            case 2:
                count = choose.randrange(4)
                return "setgroups:" + ",".join(
                    choose.choice("0 33 34 5".split()) for _ in range(count)
                )
            case 3:
                return f"capset:{caps()},{caps()},{caps()}"
            case 4:
                option = choose.choice((7, 8, 8, 3, 4, 27, 39))
                return f"prctl:{option},{choose.choice((0, 1, 1, 2))}"
            case 5:
                what = choose.choice((1, 2, 2, 2, 3, 4, 9))
                cap = 0 if what == 4 and choose.random() < 0.7 else choose.choice(CAPS)
                return f"prctl:47,{what},{cap},{choose.choice((0, 0, 0, 0, 1))}"
            case 6:
                return f"exec:{choose.choice(list(PROGRAMS))}"
            case 7:
                return f"prctl:{choose.choice((23, 24, 24))},{choose.choice(CAPS)}"
            case 8:
                bits = choose.choice((0, 1, 4, 5, 16, 0x10, 0x30, 64, 0xC0, 0x2F, 0x100, 0x1000))
                return f"prctl:28,{bits}"
            case 9:
                return choose.choice(("fork:", "thread:", "status:"))
            case _:
                return f"prctl:38,{choose.choice((1, 1, 0))},0,{choose.choice((0, 0, 1))}"

    start = ["setgroups:"] if seed % 3 else ["setgroups:", "setuid:33"]
    steps = start + [step() for _ in range(choose.randrange(4, 12))]
    if (
        "thread:" in steps
    ):  # docs/limits.md: what a thread with ids of its own forks has its process's
        first = steps.index("thread:")
        steps = steps[:first] + [word for word in steps[first:] if word != "fork:"]
    return " ".join(steps)


def compare(runner: Runner, program: Path, directory: Path, lines: list[str], *options: str) -> int:
    """Run the sequences on the host and in a VM; the number of calls that were compared."""
    text = "\n".join(lines) + "\n"
    argv = [str(program), str(directory)]
    native = runner.run(argv, input=text, timeout=500).ok()
    vm = runner.umvm(argv, modules=[own()], input=text, timeout=500, options=options).ok()
    theirs, ours = native.split("# ")[1:], vm.split("# ")[1:]
    assert len(theirs) == len(lines)
    wrong = [index for index in range(len(lines)) if ours[index : index + 1] != [theirs[index]]]
    if wrong:
        index = min(wrong, key=lambda n: len(lines[n]))
        pairs = zip(theirs[index].splitlines(), ours[index].splitlines(), strict=False)
        shown = "\n".join(f"  {a}" if a == b else f"- {a}\n+ {b}" for a, b in pairs)
        pytest.fail(f"{len(wrong)} of {len(lines)} differ, so {index}: {lines[index]}\n{shown}")
    return sum(" = " in line for line in native.splitlines())


@needs_root
@pytest.mark.timeout(1200)
def test_random_calls_as_real_root(runner: Runner, guest_binary: Compiler, place: Path) -> None:
    program = guest_binary("cred_probe")
    make_programs(place, program)
    lines = [sequence(seed) for seed in range(SEQUENCES)]
    assert compare(runner, program, place, lines) > 4 * SEQUENCES


@needs_root
def test_random_calls_with_the_agent(runner: Runner, guest_binary: Compiler, place: Path) -> None:
    program = guest_binary("cred_probe")
    make_programs(place, program)
    lines = [sequence(seed) for seed in range(9000, 9060)]
    assert compare(runner, program, place, lines, "--engine", "agent") > 200


@needs_root
def test_a_static_musl_program_too(runner: Runner, guest_binary: Compiler, place: Path) -> None:
    program = guest_binary("cred_probe", static=True, musl=True)
    make_programs(place, program)
    lines = [sequence(seed) for seed in range(5000, 5040)]
    assert compare(runner, program, place, lines) > 100


def test_sets_of_capabilities_as_text() -> None:
    every = all_capabilities()
    assert capabilities.read("all") == every == capabilities.read("cap_all")
    assert capabilities.read("none") == 0
    assert capabilities.read("CAP_CHOWN,setuid,8") == 1 << 0 | 1 << 7 | 1 << 8
    assert capabilities.read("-chown:-1", ":") == every & ~3
    assert capabilities.read("0xc0") == 0xC0
    assert capabilities.show(0xC0) == "setgid,setuid"
    assert (capabilities.show(0), capabilities.show(every)) == ("none", "all")
    for bad in ("chwon", "", "99", "-", "0x"):
        with pytest.raises(ValueError, match="no capability"):
            capabilities.read(bad)
