"""Fetches what the stand-in modules contain, or the real modules outside a VM.

Runs in a guest's Python, 3.8 or later, with nothing of umvm installed: the files two directories up
are loaded under the package name `_umvm_guest`, whose parent package is never run.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import os
import sys
from types import ModuleType

_HERE = os.path.dirname(os.path.abspath(__file__))
_PACKAGE = "_umvm_guest"


def become(name: str) -> None:
    """Fill the module called `name`, which is being imported, or put the real one in its place."""
    if not os.environ.get("UMVM_SOCKET"):
        _get_out_of_the_way(name)
        return
    if _PACKAGE not in sys.modules:
        package = ModuleType(_PACKAGE, "The parts of umvm that a guest needs.")
        package.__path__ = [os.path.dirname(os.path.dirname(_HERE))]
        sys.modules[_PACKAGE] = package
    names = importlib.import_module(_PACKAGE + ".standin.names")
    vars(sys.modules[name]).update(names.contents(name))


def _get_out_of_the_way(name: str) -> None:
    elsewhere = [path for path in sys.path if os.path.abspath(path or ".") != _HERE]
    spec = importlib.machinery.PathFinder.find_spec(name, elsewhere)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError("No module named " + repr(name), name=name)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
