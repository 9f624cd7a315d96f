"""Run a notebook from its first cell to its last and store its outputs: `python notebooks/execute.py`.

The file is written back without times and paths of the run. KD_NOTEBOOK_OVERRIDES adds settings to the notebook's runs.
"""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).with_name("distillation.ipynb")


def execute(path: Path, folder: Path, timeout: int | None = None) -> nbformat.NotebookNode:
    """Return the notebook with its outputs.

    Args:
        path: the notebook; it is left as it is.
        folder: the working directory.
        timeout: the maximum seconds per cell; None for no limit.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell fails, with its traceback.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute()
    notebook.metadata.language_info = {"name": "python"}  # without the version
    return notebook


if __name__ == "__main__":
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else NOTEBOOK
    nbformat.write(execute(path, path.parent), path)
