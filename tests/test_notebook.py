"""The notebook of the docs goes from `generate` to a plot, in a kernel of its own, and shows progress."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

import drift_cli

ROOT = Path(drift_cli.__file__).parents[1]
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The kernel of this Python, with the package that is tested."""
    folder = tmp_path / "jupyter" / "kernels" / "tested"
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    folder.joinpath("kernel.json").write_text(
        json.dumps({"argv": command, "display_name": "tested", "language": "python"}), encoding="utf-8"
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return "tested"


@pytest.mark.filterwarnings("ignore")  # of jupyter's own
def test_the_notebook_goes_from_generate_to_a_plot_and_shows_progress(kernel: str, tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    work = tmp_path / "work"
    work.mkdir()
    NotebookClient(notebook, timeout=300, kernel_name=kernel, resources={"metadata": {"path": str(work)}}).execute()
    outputs: list[Any] = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    said = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "48/48 turns" in said
    kinds = [kind for output in outputs if output.output_type in ("execute_result", "display_data") for kind in output.data]
    assert "image/png" in kinds  # the figure
    assert kinds.count("text/html") >= 4  # the run, two tables, the verdict
    complaints = [output.text for output in outputs if output.output_type == "stream" and output.name == "stderr"]
    assert [text for text in complaints if "tqdm" not in text] == []  # tqdm misses widgets, which nothing here needs


def test_the_notebook_is_kept_without_outputs_and_names_no_machine() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    cells = json.loads(text)["cells"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells if cell["cell_type"] == "code")
    assert not any(word in text for word in ("/home/", "/tmp/", "localhost"))
