"""What W&B has of diagnostics: lines by layer and over the depth, norms by group, the table at the end."""

import json
import math
import os
from pathlib import Path

import pytest
import torch

from model import GPT
from tests.distributed import run_on_fresh_ranks
from tests.training.test_reporter import after_step, begun
from tests.training.wandb_runs import no_account, offline_folders, records, rows
from training.diagnostics.table import SCHEMA, Row, add_rows, keep_until, read_diagnostics
from training.diagnostics.tracked import layers_shown, tracked_values
from training.diagnostics.weights import by_group, norm_rows, ratios
from training.state import TrainState

__all__ = ["no_account"]


def test_lines_are_those_of_the_layers_shown_and_over_the_depth() -> None:
    stream = [Row("resid_rms", layer, "", 1.0 + layer) for layer in range(25)]
    entropy = [Row("attn_entropy", layer, "attn", 2.0) for layer in range(24)]
    other = [Row("kurtosis", 3, "", 7.0), Row("kurtosis", 9, "", 9.0)]
    found = tracked_values([*stream, *entropy, *other], 24)["diagnostics"]
    shown = [0, 3, 6, 9, 12, 14, 17, 20, 23, 24]
    assert layers_shown(24) == set(shown) and layers_shown(4) == {0, 1, 2, 3, 4}
    assert {key: value for key, value in found.items() if key.startswith("resid_rms/layer")} == {
        f"resid_rms/layer_{layer:02d}": 1.0 + layer for layer in shown
    }
    over_depth = [found[f"resid_rms/{name}"] for name in ("min", "median", "max")]
    assert over_depth == [1.0, 13.0, 25.0]
    assert found["attn_entropy/layer_23"] == 2.0 and "attn_entropy/layer_24" not in found
    assert found["kurtosis/median"] == 8.0 and "kurtosis/layer_03" not in found


def test_groups_are_the_embedding_thirds_of_the_depth_and_the_head() -> None:
    weights = {f"transformer.h.{i}.mlp.c_fc.weight": torch.full((2, 2), float(i)) for i in range(24)}
    weights |= {"transformer.wte.weight": torch.full((9,), 1.0), "transformer.ln_f.weight": torch.ones(4)}
    weights |= {"lm_head.weight": torch.ones(12), "transformer.wpe.weight": torch.full((4,), 2.0)}
    weights |= {
        "transformer.topology.skips": torch.full((1,), 5.0),
        "transformer.h.2.scale": torch.tensor(6.0),
    }
    found = norm_rows("weight_norm", weights, 24)
    assert by_group(found, 24) == pytest.approx(
        {
            "embedding": 5.0,
            "layers_00-07": math.sqrt(4 * sum(i * i for i in range(8)) + 36),
            "layers_08-15": math.sqrt(4 * sum(i * i for i in range(8, 16))),
            "layers_16-23": math.sqrt(4 * sum(i * i for i in range(16, 24))),
            "head": 4.0,
            "topology": 5.0,
        }
    )
    of_layer_2 = {row.part: row.value for row in found if row.layer == 2}
    assert of_layer_2 == pytest.approx({"": math.sqrt(16 + 36), "mlp": 4.0})
    # layer 0 is all zeros: nothing is divided by it
    assert {(row.layer, row.part) for row in found} - {
        (row.layer, row.part) for row in ratios(found, found)
    } == {
        (0, ""),
        (0, "mlp"),
    }


def test_the_table_has_each_step_once_and_nothing_after_a_resume(tmp_path: Path) -> None:
    assert read_diagnostics(tmp_path).num_rows == 0
    for step, value in ((1, 0.5), (2, 0.25), (4, 0.125), (2, 0.75)):
        add_rows(tmp_path, step, 64 * step, [Row("resid_rms", 0, "", value), Row("resid_rms", 1, "", value)])
    table = read_diagnostics(tmp_path)
    assert table.schema.equals(SCHEMA)
    assert table["step"].to_pylist() == [1, 1, 4, 4, 2, 2] and table["value"].to_pylist()[-1] == 0.75
    keep_until(tmp_path, 3)
    assert read_diagnostics(tmp_path)["step"].to_pylist() == [1, 1, 2, 2]


class Engine:
    """What diagnostics use of an engine without ZeRO, in fp32."""

    def __init__(self, gpt: GPT) -> None:
        self.module, self.optimizer = gpt, None


def one_step(rank: int, folder: Path) -> None:
    """A run of one step, in which all weights move by 0.01."""
    os.environ["WANDB_MODE"] = "offline"
    state = TrainState()
    report, terminal = begun(folder, state, steps=1)
    engine = Engine(GPT(report.recipe.model))
    with report.diagnosed_step(engine, 1), torch.no_grad():
        for parameter in engine.module.parameters():
            parameter.add_(0.01)
    after_step(state, report)
    state.note_validation(2.0, 0.5)
    report.end(state, False, None)
    report._tracker.wait()  # type: ignore[union-attr]
    assert not any("W&B is lost" in said for said in terminal.said), terminal.said


def test_wandb_has_a_step_in_its_row_and_the_table_at_the_end(tmp_path: Path, no_account: None) -> None:
    # not forked from a process that has wandb: the media folder that it makes goes with another fork
    run_on_fresh_ranks(one_step, 1, tmp_path)
    (row,) = rows(records(*offline_folders(tmp_path))).values()
    table = read_diagnostics(tmp_path / "run")
    kept = {key: tuple(column) for key, column in table.to_pydict().items()}
    rms = dict(zip(zip(kept["name"], kept["layer"], kept["part"], strict=True), kept["value"], strict=True))
    assert row["train/loss"] == 2.0 and row["tokens"] == 128
    assert row["diagnostics/resid_rms/layer_01"] == pytest.approx(rms["resid_rms", 1, ""])
    assert row["diagnostics/update_ratio/max"] > 0
    assert row["grad_norm/layers_00-00"] == pytest.approx(rms["grad_norm", 0, ""])
    assert row["weight_norm/embedding"] == pytest.approx(rms["weight_norm", 0, "embedding"])
    assert row["diagnostics/table.nrows"] == table.num_rows
    media = next(iter((tmp_path / "run" / "wandb").rglob("*.table.json")))
    content = json.loads(media.read_text())
    assert content["columns"] == ["step", "tokens", "name", "layer", "part", "value"]
    assert len(content["data"]) == table.num_rows


def test_a_step_that_is_profiled_is_not_measured(tmp_path: Path) -> None:
    report, terminal = begun(tmp_path, TrainState(), steps=1, profile_steps=(1,))
    with report.profiled_step(), report.diagnosed_step(None, 1):
        pass
    assert not (tmp_path / "run" / "diagnostics.parquet").exists()
    assert not any("no diagnostics" in said for said in terminal.said)


def test_at_other_steps_nothing_is_done_and_nothing_waits(tmp_path: Path) -> None:
    """There is no engine to ask and no process group to wait in."""
    report, terminal = begun(tmp_path, TrainState(), steps=9)
    for step in (3, 5, 6, 7):
        with report.diagnosed_step(None, step):
            pass
    assert not any("no diagnostics" in said for said in terminal.said)
    with pytest.raises(ValueError, match="process group"), report.diagnosed_step(None, 4):
        pass
