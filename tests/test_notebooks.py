"""The notebooks run from top to bottom, and end where their text says."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from rtbjax.certificate import VERDICTS

ROOT = Path(__file__).resolve().parents[1]


def execute(name):
    """Everything the notebook prints, cell by cell."""
    notebook = nbformat.read(ROOT / "notebooks" / name, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "notebooks are stored without outputs"
    # A reader's machine, not the eight devices of the other tests.
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    client = NotebookClient(notebook, timeout=500, kernel_name="python3", resources={"metadata": {"path": ROOT}})
    client.execute(env=env)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, verdicts",
    [
        ("quickstart.ipynb", ["consistent", "modes_missing"]),
        ("own_prior.ipynb", ["consistent"] * 3),
        ("gmm.ipynb", ["consistent", "modes_missing"]),
        ("digits.ipynb", ["importance_weight"]),
        ("inverse.ipynb", ["importance_weight"]),
    ],
)
def test_notebook_runs_and_reaches_its_verdicts(name, verdicts):
    printed = execute(name)
    if name == "own_prior.ipynb" and os.environ.get("RTBJAX_NEEDS_TORCH"):
        assert "The black box is PyTorch" in printed
    found = [word.strip(".") for word in printed.split() if word.strip(".") in VERDICTS]
    assert found == verdicts, printed
