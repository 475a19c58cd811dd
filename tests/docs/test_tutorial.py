"""The tutorial runs as it is, and says what it showed when it was written.

Authors
 * The speechbrain_merge authors 2026
"""

import re

import nbformat
from nbclient import NotebookClient
from site_pages import DOCS


def printed(notebook) -> str:
    """All that the cells have printed."""
    return "".join(
        output.text
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type == "stream" and output.name == "stdout"
    )


def rates(text) -> dict:
    """The last table of word error rates: model to its row."""
    row = re.compile(r"^(\w+) +((?:\d+\.\d *){5})$", re.MULTILINE)
    return {
        name: [float(n) for n in rest.split()]
        for name, rest in row.findall(text)
    }


def test_the_tutorial(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(DOCS.parent))
    notebook = nbformat.read(DOCS / "tutorial.ipynb", as_version=4)
    stored = rates(printed(notebook))
    client = NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    found = rates(printed(client.execute()))
    assert list(found) == list(stored) and len(found) == 5
    # What the text says. Another processor rounds otherwise, and may hear some
    # digits otherwise
    mean = {name: row[-1] for name, row in found.items()}
    for merge in ("merged", "task_arithmetic"):
        assert mean[merge] < min(mean["noisy"], mean["echo"])
    noisy, echo = 1, 2
    assert found["noisy"][noisy] < found["echo"][noisy]
    assert found["echo"][echo] < found["noisy"][echo]
    assert found["merged"][3] < found["generalist"][3]
