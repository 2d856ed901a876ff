"""The search for the micro-batch that fits and the fastest one, and steps that are really made for it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.plan import main
from tests.scripts.test_plan import DS_CONFIG, RECIPE
from training.plan.measure import Try, search

AVAILABLE = 1000


def sized(
    peak: Callable[[int], float], rate: Callable[[int], float], tried: list[int]
) -> Callable[[int], Try]:
    """Steps with `AVAILABLE` bytes, where a micro-batch has this peak and these tokens per second."""

    def run(size: int) -> Try:
        tried.append(size)
        if peak(size) > AVAILABLE:
            return Try(size, 1, planned=10 * size, available=AVAILABLE)
        return Try(size, 1, 10 * size, AVAILABLE, peak=round(peak(size)), tokens_per_s=rate(size))

    return run


@pytest.mark.parametrize("true_bytes", [3, 8, 10, 14, 31])
@pytest.mark.parametrize("first", [1, 24, 576])
def test_the_largest_that_fits_is_found_in_few_tries(true_bytes: int, first: int) -> None:
    """Whatever share of the plan's 10 bytes per sequence it really takes."""
    sizes = [size for size in range(1, 577) if 576 % size == 0]
    order: list[int] = []
    run = sized(lambda size: true_bytes * size, lambda size: size, order)
    tried = search(sizes, first, run, planned=lambda size: 10 * size)
    fitting = [one.micro_batch for one in tried if one.peak]
    assert max(fitting) == max(size for size in sizes if true_bytes * size <= AVAILABLE)
    assert len(order) <= 6 and len(order) == len(set(order))
    assert [one.micro_batch for one in tried] == sorted(order)


def test_a_smaller_micro_batch_that_is_faster_is_found() -> None:
    sizes = [2**power for power in range(8)]
    rates = {1: 10, 2: 20, 4: 38, 8: 60, 16: 90, 32: 95, 64: 80, 128: 70}
    tried = search(sizes, 128, sized(lambda size: size, rates.__getitem__, []), lambda size: size)
    assert max(tried, key=lambda one: one.tokens_per_s or 0).micro_batch == 32
    assert min(one.micro_batch for one in tried) == 16  # the first that is slower ends it


def test_where_nothing_fits_all_tries_say_so() -> None:
    tried = search([1, 2, 4], 4, sized(lambda size: 2000, lambda size: 1, []), lambda size: 10 * size)
    assert tried[0].micro_batch == 1 and not any(one.peak for one in tried)


@pytest.mark.slow
def test_steps_are_made_and_a_try_that_takes_too_much_is_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A prime batch leaves two micro-batches: all of it, which the limit does not hold, and one."""
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    sizes = {"train_batch_size": 4001, "train_micro_batch_size_per_gpu": 4001}
    (tmp_path / "ds.json").write_text(json.dumps(DS_CONFIG | sizes))
    words = ["--config", str(tmp_path / "tiny.yaml"), "--deepspeed_config", str(tmp_path / "ds.json")]
    options = ["--measure", "--limit_gib", "1.2", "--train.compile", "false", "--json", str(tmp_path / "out")]
    assert main([*words, *options]) == 0
    said = capsys.readouterr().out
    small, whole = json.loads((tmp_path / "out").read_text())["measured"]
    assert (small["micro_batch"], small["accumulation"], whole["micro_batch"]) == (1, 4001, 4001)
    assert whole["peak"] is None and whole["planned"] > whole["available"] > small["planned"]
    assert 0 < small["peak"] < small["available"] and small["tokens_per_s"] > 0
    assert "does not fit" in said
    assert said.strip().endswith("the fastest 1: --ds.train_micro_batch_size_per_gpu 1")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--measure", "--limit_gib", "0"], "--limit_gib is '0', but it must be a number above 0"),
        (["--measure", "--limit_gib", "much"], "--limit_gib is 'much'"),
        (["--gpus", "1xH100", "--limit_gib", "4"], "--limit_gib is for --measure, which is not given"),
        ([], "or --measure, to make steps on the device at hand"),
    ],
)
def test_a_mistake_in_measuring_gets_one_sentence(
    options: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    (tmp_path / "ds.json").write_text(json.dumps(DS_CONFIG))
    words = ["--config", str(tmp_path / "tiny.yaml"), "--deepspeed_config", str(tmp_path / "ds.json")]
    assert main([*words, *options]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1
