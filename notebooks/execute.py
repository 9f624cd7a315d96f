"""Run a notebook from its first cell to its last and keep what it shows: `python notebooks/execute.py`.

Written back without traces of when and where it ran. KD_NOTEBOOK_OVERRIDES reaches the notebook.
"""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).with_name("distillation.ipynb")


def executed(path: Path, folder: Path, cells: int | None = None, timeout: int | None = None) -> nbformat.NotebookNode:
    """The notebook with its outputs.

    Args:
        path: the notebook; it is left as it is.
        folder: where it is started.
        cells: how many of its cells, counted from the first; None for all.
        timeout: the most seconds for one of them.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell fails, with its traceback.
    """
    notebook = nbformat.read(path, as_version=4)
    notebook.cells = notebook.cells[:cells]
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute()
    notebook.metadata.language_info = {"name": "python"}  # not of which version
    return notebook


if __name__ == "__main__":
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else NOTEBOOK
    nbformat.write(executed(path, path.parent), path)
