"""Runs notebooks, and takes the gallery's pictures out of them: ``python notebooks/gallery.py [gmm.ipynb ...]``."""

import argparse
import base64
import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

NOTEBOOKS = Path(__file__).resolve().parent
PICTURES = NOTEBOOKS.parent / "docs" / "images" / "gallery"


def execute(name: str) -> NotebookNode:
    """The notebook with its outputs, run from top to bottom in the repository's root.

    Raises:
      CellExecutionError: a cell fails.
    """
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    # A reader's machine, not the many devices of the tests.
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    where = {"metadata": {"path": NOTEBOOKS.parent}}
    NotebookClient(notebook, timeout=500, kernel_name="python3", resources=where).execute(env=env)
    return notebook


def outputs(notebook: NotebookNode, kind: str) -> list[NotebookNode]:
    """Those of the code cells, in order; ``kind`` is ``stream`` or ``display_data``."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [output for cell in code for output in cell.outputs if output.output_type == kind]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=sorted(path.name for path in NOTEBOOKS.glob("*.ipynb")))
    PICTURES.mkdir(exist_ok=True)
    for name in parser.parse_args().names:
        for picture in outputs(execute(name), "display_data")[:1]:  # The first one, if there are many.
            path = PICTURES / Path(name).with_suffix(".png").name
            path.write_bytes(base64.b64decode(picture.data["image/png"]))
            print(path)
