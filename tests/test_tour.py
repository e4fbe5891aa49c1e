"""The notebook of the documents runs."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

TOUR = Path(__file__).resolve().parents[1] / "res" / "doc" / "tour.ipynb"


def test_the_notebook_runs_and_is_light(tmp_path):
    """Every cell, and none has an error; a failing cell raises here."""
    notebook = nbformat.read(TOUR, as_version=4)
    shipped = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    assert TOUR.stat().st_size < 300_000 and sum(map(bool, shipped)) > 5  # readers see what it prints
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ()))
    assert "dB" in shown and "bits" in shown
