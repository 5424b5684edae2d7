"""The notebooks run from top to bottom, and end where their text says."""

import os
import time

import nbformat
import pytest

from notebooks import gallery
from rtbjax.certificate import VERDICTS


@pytest.mark.parametrize("path", sorted(gallery.NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_are_stored_without_outputs(path):
    assert not any(cell.get("outputs") for cell in nbformat.read(path, as_version=4).cells)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, verdicts",
    [
        ("quickstart.ipynb", ["consistent", "modes_missing"]),
        ("own_prior.ipynb", ["consistent"] * 3),
        ("gmm.ipynb", ["consistent", "modes_missing"]),
        ("digits.ipynb", ["importance_weight"]),
        ("inverse.ipynb", ["importance_weight"]),
        ("stories.ipynb", ["consistent"] * 4),
        ("control.ipynb", ["unreliable"] + ["importance_weight"] * 5),
        ("text_to_image.ipynb", ["importance_weight"]),
    ],
)
def test_notebook_runs_and_reaches_its_verdicts(name, verdicts):
    started = time.monotonic()
    notebook = gallery.execute(name)
    assert time.monotonic() - started < 180
    printed = "".join(output.text for output in gallery.outputs(notebook, "stream") if output.name == "stdout")
    if name == "own_prior.ipynb" and os.environ.get("RTBJAX_NEEDS_TORCH"):
        assert "The black box is PyTorch" in printed
    found = [word.strip(".:") for word in printed.split() if word.strip(".:") in VERDICTS]
    assert found == verdicts, printed
    figures = sum(cell.source.count("plt.show()") for cell in notebook.cells)
    assert len(gallery.outputs(notebook, "display_data")) == figures, "a figure is not shown"
