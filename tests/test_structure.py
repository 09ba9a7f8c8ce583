"""The shape of the code: lengths of modules and functions, names that collide, imports that must stay cheap."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import elm_interp

ROOT = Path(elm_interp.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))
PACKAGES = ["elm_interp", *(m.name for m in pkgutil.walk_packages([str(ROOT)], "elm_interp.") if m.ispkg)]
EXTRAS = ("nnsight", "transformer_lens", "xarray", "lm_eval", "ray")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_module_has_at_most_400_lines_and_says_what_it_is(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    assert ast.get_docstring(ast.parse(text))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_function_has_at_most_60_lines_without_its_docstring(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            documented = ast.get_docstring(node) is not None
            doc = first.end_lineno - first.lineno + 1 if documented else 0
            assert node.end_lineno - node.lineno + 1 - doc <= 60, node.name


@pytest.mark.parametrize("name", PACKAGES)
def test_no_public_name_is_the_name_of_a_module(name):
    package = importlib.import_module(name)
    modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    assert not modules & set(getattr(package, "__all__", ()))


@pytest.mark.parametrize("name", PACKAGES)
def test_every_public_name_is_there(name):
    package = importlib.import_module(name)
    assert package.__doc__
    for public in getattr(package, "__all__", ()):
        assert getattr(package, public) is not None


def test_importing_everything_loads_no_extra():
    code = (
        "import sys; from elm_interp.registry import discover; discover(); print([m for m in %r if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code % (EXTRAS,)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_registry_is_filled_by_whoever_asks_first():
    code = "import elm_interp as ei; print(len(ei.list_metrics('*')), len(ei.list_metrics('norm.*')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    every, norms = map(int, done.stdout.split())
    assert every > norms > 0
