"""The notebook does what it shows: its cells run in order, in one process, and their stored outputs are whole."""

import json
import os
import tempfile
from pathlib import Path

import matplotlib
import pytest

from tests.support.doc_blocks import ROOT

NOTEBOOK = json.loads(
    (ROOT / "examples" / "notebook" / "first_model.ipynb").read_text(encoding="utf-8")
)
CELLS = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
SHORTER = {"train_iters=200": "train_iters=6", "eval_interval=50": "eval_interval=6"}


def test_the_cells_run_in_order(tmp_path, monkeypatch):
    """With fewer steps. The two runs, on one rank and on two, have one validation loss."""
    monkeypatch.chdir(tmp_path)  # the notebook moves to a folder of its own
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with matplotlib.rc_context({"backend": "agg"}):
        names: dict = {}
        for cell in CELLS:
            source = "".join(cell["source"])
            for long, short in SHORTER.items():
                source = source.replace(long, short)
            exec(compile(source, "cell", "exec"), names)
    assert Path(os.getcwd()).parent == tmp_path
    assert names["result"].steps == 6
    assert names["result"].valid_loss == pytest.approx(names["two"].valid_loss, rel=1e-9)
    assert names["verdict"].passed


def test_every_cell_has_run_once_in_order_without_an_error():
    assert [cell["execution_count"] for cell in CELLS] == list(range(1, len(CELLS) + 1))
    outputs = [output for cell in CELLS for output in cell["outputs"]]
    assert "error" not in {output["output_type"] for output in outputs}
    assert any("image/png" in output.get("data", {}) for output in outputs)
    text = json.dumps(outputs)
    assert str(Path(tempfile.gettempdir())) not in text and "\\u001b[" not in text
