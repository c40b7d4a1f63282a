"""Notebooks run from the first cell to the last in their quick mode, and are stored without output."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("matplotlib")
pytest.importorskip("ipykernel")
nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_without_output(path):
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


def _run(name, tmp_path, monkeypatch):
    """Run a notebook in its quick mode and return what its cells said in words."""
    from jupyter_client import KernelManager
    from jupyter_client.kernelspec import KernelSpec

    monkeypatch.setenv("EDGEOPT_QUICK", "1")
    monkeypatch.setenv("EDGEOPT_FOLDER", str(tmp_path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    manager = KernelManager()
    # This interpreter, whatever kernels the machine knows by name.
    manager._kernel_spec = KernelSpec(
        argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"], language="python"
    )
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    client = nbclient.NotebookClient(
        notebook, km=manager, timeout=240, resources={"metadata": {"path": str(ROOT / "notebooks")}}
    )
    client.execute()
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    assert not [out for out in outputs if out.output_type == "error"]
    return " ".join(out.data.get("text/markdown", "") for out in outputs if out.output_type == "execute_result")


@pytest.mark.torch
@pytest.mark.processes
def test_multi_stage_diffusion_runs(tmp_path, monkeypatch):
    said = _run("multi_stage_diffusion", tmp_path, monkeypatch)
    for name in ("story-quality.svg", "story-shares.svg", "story-digits.png"):
        assert (tmp_path / "figures" / name).stat().st_size > 5000
    assert "predicted only" in said
    assert "against split: better at" in said


@pytest.mark.torch
@pytest.mark.processes
def test_llm_on_the_edge_runs(tmp_path, monkeypatch):
    said = _run("llm_on_the_edge", tmp_path, monkeypatch)
    assert (tmp_path / "llm-house.svg").stat().st_size > 5000
    assert "Predicted only" in said
    assert "no plan" not in said
    assert "| 100 | 0.2 | speculative |" in said, "a target that is cut like the pipeline, and drafted for"
