"""The walls of the house: who may import whom, what the packages export, and what a command loads."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import edgeopt
import edgeopt_solvers

ROOT = Path(__file__).resolve().parents[1]
TORCH_ROOMS = ("edgeopt/executor/", "edgeopt/programs/", "edgeopt/profiler/", "edgeopt/training/")
TORCH_LIBRARIES = {"torch", "transformers", "diffusers", "safetensors", "accelerate"}


def _modules(package: str) -> list[str]:
    module = importlib.import_module(package)
    return [package] + [found.name for found in pkgutil.walk_packages(module.__path__, f"{package}.")]


LIGHT_MODULES = sorted(
    name
    for name in _modules("edgeopt_solvers")
    + [
        f"edgeopt.{Path(path.relative_to(ROOT / 'edgeopt')).with_suffix('').as_posix().replace('/', '.')}".removesuffix(
            ".__init__"
        )
        for path in (ROOT / "edgeopt").rglob("*.py")
        if not path.relative_to(ROOT).as_posix().startswith(TORCH_ROOMS)
    ]
)


def _imports(path: Path) -> set[str]:
    """Top-level names of every absolute import in a file, wherever in the file it stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def test_the_import_contracts_hold():
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as main; main()", "--no-cache"],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "broken" in done.stdout.lower(), "the summary line counts kept and broken contracts"


def test_torch_is_imported_only_in_its_rooms():
    # Files, not the contract's list of modules: a room that is added later is held to it without being listed.
    guests = {
        path.relative_to(ROOT).as_posix(): sorted(_imports(path) & TORCH_LIBRARIES)
        for path in (ROOT / "edgeopt").rglob("*.py")
        if _imports(path) & TORCH_LIBRARIES and not path.relative_to(ROOT).as_posix().startswith(TORCH_ROOMS)
    }
    assert guests == {}


def test_the_solvers_import_neither_edgeopt_nor_torch():
    guests = {
        path.name: sorted(_imports(path) & ({"edgeopt"} | TORCH_LIBRARIES))
        for path in (ROOT / "solvers" / "edgeopt_solvers").rglob("*.py")
        if _imports(path) & ({"edgeopt"} | TORCH_LIBRARIES)
    }
    assert guests == {}


def test_ruff_refuses_to_import_the_folder_solvers(tmp_path):
    probe = tmp_path / "probe.py"
    probe.write_text("import solvers\nfrom solvers.edgeopt_solvers import solve\n", encoding="utf-8")
    ruff = shutil.which("ruff", path=str(Path(sys.executable).parent)) or shutil.which("ruff")
    done = subprocess.run(
        [ruff, "check", "--config", str(ROOT / "pyproject.toml"), "--select", "TID251", "--no-cache", str(probe)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout.count("TID251") >= 1
    assert "edgeopt_solvers" in done.stdout


@pytest.mark.parametrize("name", LIGHT_MODULES)
def test_all_names_exactly_what_a_module_offers(name):
    module = importlib.import_module(name)
    path = Path(module.__file__)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    defined = {
        node.name
        for node in tree.body
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_")
    }
    if name == "edgeopt.cli":  # verbs are reached through the application
        defined = {"main"}
    if not defined and not hasattr(module, "__all__"):
        return  # an empty package
    exported = list(module.__all__)
    assert len(exported) == len(set(exported))
    assert [one for one in exported if not hasattr(module, one)] == [], "__all__ names what does not exist"
    assert sorted(defined - set(exported)) == [], "public, but not in __all__"


def test_the_versions_of_both_packages_agree():
    import tomllib

    root = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    solvers = tomllib.loads((ROOT / "solvers" / "pyproject.toml").read_text())["project"]
    assert edgeopt.__version__ == root["version"] == edgeopt_solvers.__version__ == solvers["version"]
    assert f"edgeopt-solvers=={root['version']}" in root["dependencies"]


@pytest.mark.parametrize("package", ["edgeopt", "edgeopt_solvers"])
def test_packages_say_that_they_are_typed(package):
    assert (Path(importlib.import_module(package).__file__).parent / "py.typed").is_file()


def _loaded_by(code: str) -> set[str]:
    program = textwrap.dedent(code) + "\nimport sys\nprint('MODULES', *sorted(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.rpartition("MODULES ")[2].split())


SLOW_TO_LOAD = {
    "torch",
    "transformers",
    "diffusers",
    "ortools",
    "cvxpy",
    "pulp",
    "highspy",
    "pint",
    "pandas",
    "matplotlib",
}


def test_solve_loads_neither_torch_nor_a_solver_it_does_not_use():
    loaded = _loaded_by("""
        from edgeopt.cli import main
        assert main(["solve", "home-cluster", "--json"]) == 0
    """)
    assert loaded & SLOW_TO_LOAD == set()
    assert "scipy.optimize" not in loaded


def test_help_loads_next_to_nothing():
    loaded = _loaded_by("""
        from edgeopt.cli import main
        assert main(["--help"]) == 0
    """)
    assert loaded & (SLOW_TO_LOAD | {"numpy", "scipy", "pydantic", "ruamel.yaml"}) == set()


def test_the_solvers_load_numpy_alone():
    loaded = _loaded_by("import edgeopt_solvers, edgeopt_solvers.chain")
    assert loaded & (SLOW_TO_LOAD | {"scipy", "pydantic", "edgeopt"}) == set()
    assert "numpy" in loaded
