"""What an override of one batch size does to the other two."""

import itertools
import json
from pathlib import Path

import pytest

from model.errors import UserError
from tests.training.command_lines import command, recipe_folder, refusal, resolve
from tests.training.ds_configs import ADAMW, load
from tests.training.ds_configs import refusal as ds_refusal
from training.config.batch_sizes import IndivisibleBatch

NAMES = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
Sizes = tuple[int | None, int | None, int | None]


def written(sizes: Sizes) -> dict[str, int]:
    return {name: size for name, size in zip(NAMES, sizes, strict=True) if size is not None}


def texts(sizes: Sizes) -> dict[str, str]:
    return {name: str(size) for name, size in written(sizes).items()}


@pytest.mark.parametrize(
    ("in_json", "overrides", "ranks", "expected"),
    [
        # the global batch: the micro-batch stays, accumulation follows
        ((None, 2, 2), (8, None, None), 1, (8, 2, 4)),
        ((16, 2, 8), (8, None, None), 1, (8, 2, 4)),
        ((16, 2, 4), (8, None, None), 2, (8, 2, 2)),
        ((16, None, 4), (8, None, None), 1, (8, 2, 4)),
        ((16, None, None), (8, None, None), 2, (8, 4, 1)),
        # the micro-batch: the global batch stays
        ((16, 2, 8), (None, 4, None), 1, (16, 4, 4)),
        ((16, None, 8), (None, 4, None), 1, (16, 4, 4)),
        ((16, 2, None), (None, 4, None), 2, (16, 4, 2)),
        ((None, 2, 2), (None, 4, None), 1, (8, 4, 2)),
        # accumulation: the global batch stays, the micro-batch follows
        ((16, 2, 8), (None, None, 4), 1, (16, 4, 4)),
        ((16, 2, None), (None, None, 4), 1, (16, 4, 4)),
        ((None, 2, 2), (None, None, 4), 1, (8, 2, 4)),
        # two: the third follows
        ((16, 2, 8), (24, 3, None), 2, (24, 3, 4)),
        ((16, 2, 8), (24, None, 4), 2, (24, 3, 4)),
        ((16, 2, 8), (None, 3, 4), 2, (24, 3, 4)),
        # three, which agree; and a JSON whose own sizes do not, on so many ranks
        ((16, 2, 8), (24, 3, 4), 2, (24, 3, 4)),
        ((16, 2, 8), (16, None, None), 2, (16, 2, 4)),
    ],
)
def test_the_size_that_was_not_given_follows(
    tmp_path: Path, in_json: Sizes, overrides: Sizes, ranks: int, expected: tuple[int, int, int]
) -> None:
    config = load(tmp_path, {"optimizer": ADAMW} | written(in_json), texts(overrides), ranks)
    assert tuple(config.raw[name] for name in NAMES) == expected
    changed = [
        name
        for name, before, given, now in zip(NAMES, in_json, overrides, expected, strict=True)
        if given is None and before not in (None, now)
    ]
    assert len(config.notes) == len(changed)
    for name, note in zip(changed, config.notes, strict=True):
        size = expected[NAMES.index(name)]
        assert note.startswith(f"{name} is {size} here, and {in_json[NAMES.index(name)]} in the JSON: ")
        others = " and ".join(f"{n} {s}" for n, s in zip(NAMES, expected, strict=True) if n != name)
        assert note.endswith(f"it follows from {others} on {ranks} rank(s)")


def test_every_mixture_keeps_what_is_asked_or_is_refused(tmp_path: Path) -> None:
    options = [(None, 12, 16), (None, 2, 3), (None, 2, 4)]
    taken = refused = 0
    for in_json, given in itertools.product(itertools.product(*options), repeat=2):
        for ranks in (1, 2):
            try:
                config = load(tmp_path, {"optimizer": ADAMW} | written(in_json), texts(given), ranks)
            except IndivisibleBatch:
                refused += 1
                continue
            except UserError as error:
                assert "sets neither" in str(error)
                assert not {NAMES[0], NAMES[1]} & (written(in_json) | written(given)).keys()
                continue
            taken += 1
            total, micro, accumulation = (config.raw[name] for name in NAMES)
            assert total == micro * accumulation * ranks
            assert written(given).items() <= config.raw.items()
            if in_json[0] and given[0] is None and not (given[1] and given[2]):
                assert total == in_json[0]  # the experiment's, whatever else was overridden
            if not any(given):
                assert written(in_json).items() <= config.raw.items() and config.notes == ()
    assert taken > 300 and refused > 100


@pytest.mark.parametrize(
    ("in_json", "overrides", "ranks", "words"),
    [
        ((16, 2, 8), (7, None, None), 1, "give --ds.train_micro_batch_size_per_gpu 1 too"),
        ((16, 4, 4), (6, None, None), 1, "give --ds.train_micro_batch_size_per_gpu 3 too"),
        ((None, 8, 2), (8, None, None), 2, "give --ds.train_micro_batch_size_per_gpu 4 too"),
        ((16, 2, 8), (7, None, None), 2, "train_batch_size has to be a multiple of 2"),
        (
            (16, 2, 8),
            (None, 3, None),
            1,
            "train_batch_size 16, train_micro_batch_size_per_gpu 3 on 1 rank(s)",
        ),
        ((16, 2, 8), (24, 3, 4), 1, "train_batch_size 24, train_micro_batch_size_per_gpu 3, gradient_acc"),
        ((16, 2, 8), (24, None, 5), 1, "train_batch_size 24, gradient_accumulation_steps 5 on 1 rank(s)"),
        (
            (16, 2, 4),
            (None, None, None),
            1,
            "train_micro_batch_size_per_gpu 2, gradient_accumulation_steps 4",
        ),
    ],
)
def test_sizes_that_contradict_are_refused_with_what_to_give(
    tmp_path: Path, in_json: Sizes, overrides: Sizes, ranks: int, words: str
) -> None:
    message = ds_refusal(tmp_path, {"optimizer": ADAMW} | written(in_json), texts(overrides), ranks)
    assert "do not divide" in message and words in message, message


def test_the_same_command_goes_on_and_its_own_configs_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = recipe_folder(tmp_path, monkeypatch)
    (folder / "ds.json").write_text(json.dumps({"optimizer": ADAMW} | written((None, 2, 2))))
    argv = [*command(folder, "--ds.train_batch_size", "8"), "--deepspeed_config", str(folder / "ds.json")]
    recipe, ds, run = resolve(argv)
    run.path.mkdir()
    run.write_configs(vars(recipe), ds.raw, argv)
    run.append_metrics(kind="train", step=1, loss=1.0)
    assert resolve(argv)[1] == ds
    own = ["--config", str(run.path / "recipe.yaml"), "--deepspeed_config", str(run.path / "ds_config.json")]
    again = resolve([*own, "--run_dir", str(run.path)])[1]
    assert again.raw == ds.raw and again.notes == ()
    other = refusal([*own, "--run_dir", str(run.path), "--ds.train_batch_size", "16"])
    assert "ds.train_batch_size = 8, but 16 is asked for" in other
