"""How steps scale: medians here, the plan's own numbers for GPUs, and what others publish."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from model import GPT, flops_per_token
from tests.distributed import run_on_ranks
from tests.scripts.contending import SCRIPTS, options, prepare
from tests.scripts.test_plan import DS_CONFIG, RECIPE
from training.engine.hardware import GPUS
from training.plan.command import read_plan
from training.plan.scaling import Plan


@pytest.fixture(scope="module")
def scaling() -> Iterator[ModuleType]:
    sys.path.insert(0, SCRIPTS)
    import bench_scaling

    yield bench_scaling
    sys.path.remove(SCRIPTS)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    (tmp_path / "ds.json").write_text(json.dumps(DS_CONFIG))
    return ["--config", str(tmp_path / "tiny.yaml"), "--deepspeed_config", str(tmp_path / "ds.json")]


def test_predictions_are_the_plans_own(
    scaling: ModuleType, files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "scaling.json"
    assert scaling.main([*files, "--ranks", "--gpu", "A100", "--mfu", "0.3", "--json", str(file)]) == 0
    said, found = capsys.readouterr().out, json.loads(file.read_text())
    asked = read_plan([*files, "--gpus", "8xA100", "--mfu", "0.3"])
    plan = Plan(asked.recipe, asked.deepspeed, asked.asked, GPUS["A100"], 0.3)
    rows = {row.gpus: row for row in plan.rows()}
    assert [row["gpus"] for row in found["predicted"]] == [2**power for power in range(3, 13)]
    parameters, tokens = plan.memory.shape.parameters, 3 * 64
    compute = flops_per_token(GPT(asked.recipe.model)) * tokens / (312e12 * 0.3)
    for row in found["predicted"]:
        gpus = row["gpus"]
        link = 300e9 if gpus == 8 else 8 * 25e9  # in a node, and of its ports together
        sent = (gpus - 1) / gpus * (2 * 4 + 2) * parameters  # fp32 gradients summed, bf16 weights gathered
        assert row["step_s"] == pytest.approx(compute + sent / (0.7 * link), rel=1e-6)
        assert row["tokens_per_s"] == pytest.approx(tokens / row["step_s"])
        assert row["recipe_tokens_per_s"] == pytest.approx(rows[gpus].tokens_per_s / gpus)
        assert f"{row['recipe_tokens_per_s']:,.0f}" in said
    assert found["predicted"][0]["step_s"] == pytest.approx(rows[8].step_s)
    assert "\nhere:" not in said and found["here"] == {}


def test_published_figures_stand_beside_the_same_number_of_gpus(
    scaling: ModuleType, files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert scaling.main([*files, "--ranks"]) == 0
    said = capsys.readouterr().out
    lines = {line.split()[0]: line.split()[6:] for line in said.splitlines() if line.strip()[:1].isdigit()}
    assert lines["8"] == ["100.0%"] * 3 and lines["4096"] == ["-"] * 3
    assert lines["64"] == ["97.7%", "77.5%", "99.3%"]
    assert all(published.source in said for published in scaling.PUBLISHED)


def test_ranks_take_turns_and_medians_are_compared(
    scaling: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    seconds, made = iter([1.0, 4.0, 2.0, 2.5, 9.0, 2.0]), []

    def turn(_: object, ranks: int) -> float:
        made.append(ranks)
        return next(seconds)

    monkeypatch.setattr(scaling, "seconds_per_step", turn)
    found = scaling.measured(options(ranks=[2, 1], rounds=3))
    assert made == [1, 2] * 3
    assert found[1] == {"step_s": 2.0, "tokens_per_s": 4 * 32 / 2.0, "efficiency": 1.0}
    assert found[2] == {"step_s": 2.5, "tokens_per_s": 2 * 4 * 32 / 2.5, "efficiency": 0.8}


def turn_on_a_rank(rank: int, file: Path) -> None:
    prepare()
    from contenders.turns import one_turn

    one_turn(rank, 2, options(), 1, file)  # port 1: the ranks have met already


def test_a_turn_is_a_step_of_all_ranks(tmp_path: Path) -> None:
    run_on_ranks(turn_on_a_rank, 2, tmp_path / "turn.json")
    turn = json.loads((tmp_path / "turn.json").read_text())
    assert turn["seconds"] > 0 and 3 < turn["loss"] < 5
