"""Rules of the project itself: what is packaged, who imports whom, what is documented."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from umvm import cli_reference, hookspecs
from umvm.cli import cli
from umvm.syscalls import docs

ROOT = Path(__file__).parents[1]
LAYERS = {"core_accel": 0, "umvm": 1, "umvm.modules": 2}
"""Imports go from higher numbers to lower ones only."""
PUBLIC = {"umvm", "umvm.interfaces.filesystem", "umvm.errors"}
"""What modules may import of umvm without being part of it (those of the project may do more)."""
MAX_LINES = 500
OURS = ("umvm", "modules", "core_accel", "tests", "benchmarks", "docs")


def project() -> dict[str, Any]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)


def files(*patterns: str) -> Iterator[Path]:
    """The project's own files below its folders, generated ones left out."""
    for folder in OURS:
        for pattern in patterns:
            for path in sorted((ROOT / folder).rglob(pattern)):
                generated = path.suffix == ".c" and path.parent.name == "core_accel"
                if "__pycache__" not in path.parts and not generated and path.is_file():
                    yield path


def name_of(path: Path) -> str:
    """The import name of a Python file of the product."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] == "modules":
        parts[:1] = ["umvm", "modules"]
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts)


def layer(name: str) -> int | None:
    """The layer of an imported name; None: not ours."""
    if name == "umvm.modules" or name.startswith("umvm.modules."):
        return LAYERS["umvm.modules"]
    return LAYERS.get(name.partition(".")[0])


def imports(path: Path) -> Iterator[str]:
    """The absolute names that a Python or Cython file imports."""
    if path.suffix in (".pyx", ".pxd"):
        yield from re.findall(r"^\s*(?:from|c?import) +([\w.]+)", path.read_text(), re.MULTILINE)
        return
    package = name_of(path) if path.name == "__init__.py" else name_of(path).rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")
            prefix = ".".join(base[: len(base) - node.level + 1]) + "." if node.level else ""
            yield (prefix + (node.module or "")).strip(".")


def test_imports_go_one_way() -> None:
    seen = 0
    for folder in ("umvm", "modules", "core_accel"):
        for suffix in ("*.py", "*.pyx", "*.pxd"):
            for path in sorted((ROOT / folder).rglob(suffix)):
                if "guest" in path.parts and "standin" in path.parts:
                    continue  # runs in guests
                mine = layer(name_of(path))
                assert mine is not None
                for name in imports(path):
                    other = layer(name)
                    seen += other is not None
                    assert other is None or other <= mine, f"{path}: imports {name}"
    assert seen > 20


def test_the_core_names_no_module() -> None:
    for path in sorted((ROOT / "core_accel").glob("*.py*")):
        assert not re.search(r"\b(fuse|memory|passthrough)fs\b|umvm\.", path.read_text()), path


def test_package_list_is_complete() -> None:
    packages = {
        name_of(path)
        for folder in ("umvm", "modules", "core_accel")
        for path in (ROOT / folder).rglob("__init__.py")
    }
    assert set(project()["tool"]["setuptools"]["packages"]) == packages


def test_every_extension_is_built() -> None:
    listed = project()["tool"]["setuptools"]["ext-modules"]
    sources = {source for module in listed for source in module["sources"]}
    cython = {f"core_accel/{path.name}" for path in (ROOT / "core_accel").glob("*.pyx")}
    assert {source for source in sources if source.endswith(".pyx")} == cython
    assert all((ROOT / source).is_file() for source in sources)
    built = {m["name"] for m in listed if m["sources"][0].endswith(".pyx")}
    assert built == {s[:-4].replace("/", ".") for s in cython}


def test_every_extension_has_a_stub() -> None:
    for path in (ROOT / "core_accel").glob("*.pyx"):
        assert path.with_suffix(".pyi").exists(), path


def test_entry_points_exist() -> None:
    for name, target in project()["project"]["entry-points"]["umvm.modules"].items():
        place = ROOT / "modules" / Path(*target.split(".")[2:])
        found = place.with_suffix(".py").exists() or (place / "__init__.py").exists()
        assert found, f"{name} = {target}"


def test_files_are_short() -> None:
    for path in files("*.py", "*.pyx", "*.pyi", "*.h", "*.c", "*.sh"):
        count = len(path.read_text().splitlines())
        assert count < MAX_LINES, f"{path.relative_to(ROOT)} has {count} lines"


def test_no_path_of_a_machine() -> None:
    pattern = re.compile(r"(?<!\w)/(?:root|work)/\w")
    for path in [*files("*.py", "*.pyx", "*.h", "*.c", "*.sh", "*.md", "*.toml"), ROOT / "dev"]:
        if path != Path(__file__):
            found = pattern.search(path.read_text())
            assert not found, f"{path.relative_to(ROOT)}: {found}"


def test_generated_pages_are_up_to_date() -> None:
    assert (ROOT / "docs" / "cli.md").read_text() == cli_reference.markdown(), "run ./dev docs"
    assert (ROOT / "docs" / "syscalls.md").read_text() == docs.markdown(), "run ./dev docs"


def test_every_hook_is_documented() -> None:
    hooks = [name for name in vars(hookspecs) if name.startswith("umvm_")]
    assert len(hooks) == 6
    text = (ROOT / "docs" / "modules.md").read_text()
    for name in hooks:
        assert f"{name}(" in text, f"docs/modules.md doesn't describe {name}"
        assert getattr(hookspecs, name).__doc__, name


def test_every_command_has_help() -> None:
    assert len(cli.commands) > 10
    for name, command in cli.commands.items():
        assert command.help, name
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{name} {parameter.opts}"


def test_links_in_the_documents_lead_somewhere() -> None:
    pages = [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"]
    links = 0
    for page in pages:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            links += 1
            assert (page.parent / target).exists(), f"{page.name}: {target}"
    assert links > 5


# --- packaging --------------------------------------------------------------------------------


def run(*command: str, cwd: Path) -> str:
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, check=False, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(sdist, wheel made from the sdist), built with the build tools of this environment."""
    place = tmp_path_factory.mktemp("dist")
    backend = "import sys, setuptools.build_meta as b; print(getattr(b, sys.argv[1])(sys.argv[2]))"
    source = place / "source"
    copied = [*files("*"), *(ROOT / name for name in ("pyproject.toml", "README.md", "LICENSE"))]
    for path in copied:
        target = source / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        if not path.name.endswith(".so"):
            target.write_bytes(path.read_bytes())
    made = run(sys.executable, "-c", backend, "build_sdist", str(place), cwd=source)
    sdist = place / made.split()[-1]
    with tarfile.open(sdist) as archive:
        archive.extractall(place / "unpacked")
    (unpacked,) = (place / "unpacked").iterdir()
    made = run(sys.executable, "-c", backend, "build_wheel", str(place), cwd=unpacked)
    return sdist, place / made.split()[-1]


@pytest.mark.timeout(600)
@pytest.mark.slow
def test_wheel_and_sdist_hold_what_they_must(distributions: tuple[Path, Path]) -> None:
    sdist, wheel = distributions
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for folder in ("umvm", "modules"):
        for path in (ROOT / folder).rglob("*.py"):
            inside = path.relative_to(ROOT).as_posix()
            assert inside.replace("modules/", "umvm/modules/", folder == "modules") in names
    for module in project()["tool"]["setuptools"]["ext-modules"]:
        stem = module["name"].replace(".", "/")
        assert any(name.startswith(f"{stem}.cpython") for name in names), stem
        assert f"{stem}.pyi" in names or "/_" in stem
    assert {"umvm/py.typed", "core_accel/py.typed"} <= names
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"umvm", "core_accel"}
    assert not [name for name in names if name.endswith((".pyx", ".c", ".h", ".pyc"))]
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    for path in (ROOT / "core_accel").glob("*.h"):
        assert f"core_accel/{path.name}" in packed
    assert {"LICENSE", "README.md", "pyproject.toml"} <= packed


@pytest.mark.timeout(600)
@pytest.mark.slow
def test_wheel_runs_outside_the_tree(
    distributions: tuple[Path, Path], tmp_path: Path, runtime: Path
) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    python = str(tmp_path / "env" / "bin" / "python")
    wheel = str(distributions[1])
    run(python, "-m", "pip", "install", "-q", "--no-index", "--no-deps", wheel, cwd=tmp_path)
    # its dependencies are those of this environment
    site = next((tmp_path / "env" / "lib").glob("python*")) / "site-packages"
    (site / "outer.pth").write_text(str(Path(click.__file__).parents[1]))
    command = str(tmp_path / "env" / "bin" / "umvm")
    where = run(
        python, "-c", "import umvm, core_accel.engine as e; print(e.__file__)", cwd=tmp_path
    )
    assert where.startswith(str(tmp_path))
    said = run(
        command,
        "run",
        "--mount",
        "memory:none:/mnt",
        "sh",
        "-c",
        "echo hi >/mnt/a; cat /mnt/a",
        cwd=tmp_path,
    )
    assert said == "hi\n"
