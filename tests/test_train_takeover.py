"""A command that failed before its first step, corrected and given again with the same run folder."""

import pydoc_data.topics
from pathlib import Path

import pytest

from tests.jobs import arguments, make_job, run, steps_of, summary_of

NORM = """
import torch

class LayerNorm(torch.nn.LayerNorm):
    def __init__(self, ndim, bias):
        super().__init__(ndim, bias=bias)

    def forward(self, x):
        {first}
        return super().forward(x)
"""


@pytest.mark.slow
def test_two_ranks_take_over_what_failed_with_other_design_and_data(tmp_path: Path) -> None:
    texts = [text for _, text in sorted(pydoc_data.topics.topics.items())]
    (tmp_path / "other").mkdir()
    job, other = make_job(tmp_path, texts, 3), make_job(tmp_path / "other", texts[::-1], 3)
    (tmp_path / "wrong.py").write_text(NORM.format(first="self.no_such_name"))
    (tmp_path / "right.py").write_text(NORM.format(first="x = 2 * x"))

    def start(folder: Path, run_dir: Path, design: str) -> tuple[int, str]:
        design = str(tmp_path / design)
        done = run(arguments(folder, run_dir, "--model.variant", design), ranks=2)
        return done.returncode, done.stderr

    status, said = start(other, tmp_path / "run", "wrong.py")
    failed = summary_of(tmp_path / "run")
    assert status == 1 and failed["status"] == "failed" and "no_such_name" in failed["error"], said
    assert start(job, tmp_path / "run", "right.py")[0] == 0
    assert start(job, tmp_path / "fresh", "right.py")[0] == 0
    assert steps_of(tmp_path / "run") == steps_of(tmp_path / "fresh")
    summary, fresh = summary_of(tmp_path / "run"), summary_of(tmp_path / "fresh")
    same = ("status", "variant", "data_fingerprint", "design_fingerprint", "source_fingerprint", "val_loss")
    assert [summary[key] for key in same] == [fresh[key] for key in same]
    assert summary["data_fingerprint"] != failed["data_fingerprint"] and "error" not in summary
    assert (tmp_path / "run" / "designs" / "norm.py").read_text() == NORM.format(first="x = 2 * x")
    # what has begun is a run, and stays one
    status, said = start(other, tmp_path / "run", "wrong.py")
    assert status == 2 and f"{tmp_path / 'run'} is a run with" in said
