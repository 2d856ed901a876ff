"""The bench of training steps: its contenders compute the same, and its peak is of the step's products."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from model import GPT, GPTConfig, flops_per_token
from tests.distributed import run_on_ranks
from tests.scripts.contending import SCRIPTS, SHAPE, options, prepare, turns_of

aten = torch.ops.aten


@pytest.fixture(scope="module", autouse=True)
def scripts() -> Iterator[None]:
    sys.path.insert(0, SCRIPTS)
    yield
    sys.path.remove(SCRIPTS)


def test_all_contenders_compute_the_same(tmp_path: Path) -> None:
    from contenders.lineup import CONTENDERS

    sizes = {name: [2] for name in CONTENDERS if not name.endswith("compiled")} | {"NormLab": [1, 2, 4]}
    sizes |= {"nanoGPT's loop": [1, 2, 4], "bare loop without DeepSpeed": [1, 2, 4]}
    run_on_ranks(turns_of, 2, tmp_path, sizes)
    turns = json.loads((tmp_path / "turns.json").read_text())
    plain = turns["DDP fp32, 2"]
    (first, _), (last, _) = plain
    assert len(turns) == 13 and first - last > 0.05
    for name, of_contender in turns.items():
        for (loss, norm), (of_plain, norm_of_plain) in zip(of_contender, plain, strict=True):
            assert abs(loss - of_plain) < 1e-3, name
            assert norm == pytest.approx(norm_of_plain, rel=0.02), name


def test_products_are_those_of_forward_and_backward() -> None:
    from contenders.bench import PlainLoss
    from contenders.products import products

    config, micro_batch = GPTConfig(**SHAPE), 3
    tokens = micro_batch * config.block_size
    found = products(config, micro_batch, chunk=40)  # 96 rows in chunks of 32
    work = {product.name: product.flops * product.times for product in found}
    attention = work.pop("attention")
    assert sum(work.values()) + attention == pytest.approx(flops_per_token(GPT(config)) * tokens, rel=1e-12)
    forward = sum(flops for name, flops in work.items() if name.endswith("forward"))
    assert sum(work.values()) == pytest.approx(3 * forward, rel=1e-12)
    assert {p.shape for p in found if p.name.startswith("lm_head")} == {
        (32, 32, 128),
        (32, 128, 32),
        (128, 32, 32),
    }
    with FlopCounterMode(display=False) as counter:
        idx = torch.zeros(micro_batch, config.block_size, dtype=torch.long)
        PlainLoss(config)(idx, idx)[1].backward()
    counted = counter.get_flop_counts()["Global"]
    assert sum(work.values()) == pytest.approx(counted[aten.mm] + counted[aten.addmm], rel=1e-12)


def test_operands_lie_as_training_has_them() -> None:
    from contenders.products import call_of, products

    for product in products(GPTConfig(**SHAPE), micro_batch=2, chunk=40):
        with FlopCounterMode(display=False) as counter:
            call_of(product, torch.float32, torch.device("cpu"))()
        if product.name != "attention":
            assert counter.get_total_flops() == product.flops, product


def share_of_the_peak(rank: int, file: Path) -> None:
    prepare()
    from contenders import products
    from contenders.bench import Bench
    from contenders.lineup import CONTENDERS
    from training.engine.ranks import join_ranks

    products.GO_S = 0.01
    bench = Bench(options(), 2, join_ranks())
    assert bench.deepspeed.raw["timers"] == {"throughput": {"enabled": False}}
    peak = products.Peak(bench)
    peak.measure()
    turn = CONTENDERS["DDP fp32"](bench)
    assert turn.cpu_seconds > 0
    rate = bench.tokens_per_step / turn.seconds * bench.flops_per_token
    slowest, fastest = (f(of["flops_per_s"] for of in peak.table().values()) for f in (min, max))
    assert 0 < slowest < peak.flops_per_s() < fastest
    file.write_text(json.dumps(rate / peak.flops_per_s()))


def test_no_step_is_faster_than_its_products(tmp_path: Path) -> None:
    run_on_ranks(share_of_the_peak, 1, tmp_path / "share.json")
    assert 0 < json.loads((tmp_path / "share.json").read_text()) < 1


def all_rounds(rank: int, folder: Path) -> None:
    """Of two contenders: one that runs out of memory at a size, and one that is fastest at the largest."""
    prepare()
    from contenders import products, turns
    from contenders.bench import Bench, Turn

    made: list[tuple[str, int]] = []

    def turn_of(name: str, bench: Bench) -> Turn:
        made.append((name, bench.micro_batch))
        torch.ones(8 * 2**20)  # so that there is a peak
        if name == "DDP fp32" and bench.micro_batch == 4:
            raise torch.OutOfMemoryError("made up")
        return Turn(seconds=1 / bench.micro_batch, cpu_seconds=0.5, loss=1.0, grad_norm=1.0)

    products.GO_S = 1e-4
    turns.CONTENDERS = {name: lambda b, name=name: turn_of(name, b) for name in ("NormLab", "DDP fp32")}
    asked = options(rounds=3, micro_batches=[1, 2, 4], only=["DDP fp32"], json=str(folder / "bench.json"))
    with (folder / "said").open("w") as sys.stdout:
        turns.run(0, 1, asked, port=1)  # the ranks have met already
    (folder / "made.json").write_text(json.dumps(made))


def test_the_table_has_each_at_its_best_micro_batch(tmp_path: Path) -> None:
    run_on_ranks(all_rounds, 1, tmp_path)
    made = [tuple(turn) for turn in json.loads((tmp_path / "made.json").read_text())]
    assert made[:6] == [(name, size) for name in ("NormLab", "DDP fp32") for size in (1, 2, 4)]
    assert made[6:] == [("NormLab", 4), ("DDP fp32", 2)] * 2
    found = json.loads((tmp_path / "bench.json").read_text())
    assert {name: row["micro_batch"] for name, row in found["contenders"].items()} == {
        "NormLab": 4,
        "DDP fp32": 2,
    }
    assert found["out_of_memory"] == {"NormLab": [], "DDP fp32": [4]}
    assert found["contenders"]["NormLab"]["tokens_per_s"] == pytest.approx(4 * 4 * 32)
    assert found["contenders"]["NormLab"]["tokens_per_cpu_s"] == pytest.approx(4 * 32 / 0.5)
    assert found["speed_ratio"] == pytest.approx(2) and "bare_ratio" not in found
    said = (tmp_path / "said").read_text()
    assert "DDP fp32 ran out of memory at micro-batch 4" in said
    assert [line.split()[:4] for line in said.splitlines() if line.startswith("NormLab")] == [
        ["NormLab", "4", "512", "1.00"]
    ]


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        (["--micro_batches", "3", "8"], "--micro_batches has 3, which does not divide"),
        (["--only", "DDP fp23"], "did you mean 'DDP fp32'"),
    ],
)
def test_the_bench_refuses_what_cannot_be(
    asked: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import bench_engine

    assert bench_engine.main(asked) == 2
    assert problem in capsys.readouterr().err
