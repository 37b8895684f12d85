"""Execute the notebooks and save them with their outputs: `python notebooks/run.py [NAME ...]`; no name means all.

A run depends on nothing but this interpreter and its packages: no kernel installed for the user, no profile, no hub, no
file in the folder.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
KEY_RESULT = "key-result"
# Seconds, where the defaults would make a slow machine a failure. A cell may take as long as it likes.
START_TIMEOUT, OUTPUT_TIMEOUT = 1800, 300
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "PYTHONWARNINGS": "ignore:IProgress not found",  # tqdm misses ipywidgets, which nothing here needs
}


def notebook_files() -> list[Path]:
    """The notebooks in reading order."""
    return sorted(FOLDER.glob("*.ipynb"))


def execute(file: Path) -> Any:
    """A notebook as a fresh run leaves it; the file is not changed.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed; the message shows it.
    """
    notebook: Any = nbformat.read(file, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    with tempfile.TemporaryDirectory() as folder:
        # With no folder to look in, the one kernel there is runs on this interpreter; it talks through files.
        kernel = AsyncKernelManager(
            kernel_spec_manager=KernelSpecManager(kernel_dirs=[]),
            transport="tcp" if os.name == "nt" else "ipc",
            connection_file=str(Path(folder) / "kernel.json"),
        )
        work = Path(folder) / "work"
        work.mkdir()
        client = NotebookClient(
            notebook,
            km=kernel,
            timeout=None,
            startup_timeout=START_TIMEOUT,
            iopub_timeout=OUTPUT_TIMEOUT,
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": str(work)}},
        )
        client.execute(cleanup_kc=True, env=os.environ | ENVIRONMENT | {"IPYTHONDIR": str(Path(folder) / "profile")})
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def key_result(notebook: Any) -> Any:
    """What the cell with the tag `key-result` printed last.

    Raises:
        ValueError: there is not exactly one such cell, or it printed no JSON on its last line.
    """
    cells = [cell for cell in notebook.cells if KEY_RESULT in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        raise ValueError(f"found {len(cells)} cells with the tag {KEY_RESULT}; expected one")
    printed = "".join(output.text for output in cells[0].outputs if output.get("name") == "stdout")
    last = (printed.splitlines() or [""])[-1]
    try:
        return json.loads(last)
    except json.JSONDecodeError as error:
        raise ValueError(f"the last line that {KEY_RESULT} printed is {last!r}; expected JSON on one line") from error


def main(names: list[str]) -> None:
    """Execute and save the notebooks of these names."""
    files = {file.stem: file for file in notebook_files()}
    unknown = sorted({Path(name).stem for name in names} - files.keys())
    if unknown:
        sys.exit(f"no notebook {', '.join(unknown)}; expected names of {', '.join(files)}")
    for name in [Path(name).stem for name in names] or files:
        notebook = execute(files[name])
        nbformat.write(notebook, files[name])
        print(f"{name}: {json.dumps(key_result(notebook))}")


if __name__ == "__main__":
    main(sys.argv[1:])
