"""Differences of configuration on the page, and the facts of runs."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import yaml

from eval.evidence.comparison import Scorecard
from eval.evidence.settings import group_of, resolved_keys, settings_of
from eval.page.blocks import Sentences, Table
from eval.page.costs import costs_section
from eval.page.runs import runs_section
from eval.page.scores import all_scores_section, evaluation_section, losses_section
from eval.page.settings import settings_section, shared_settings_section
from eval.page.warnings import warnings_section
from tests.eval.cards import card_of
from tests.eval.test_settings import engine, recipe

MakeRun = Callable[..., Path]
SECTIONS = (
    warnings_section, losses_section, evaluation_section, all_scores_section, costs_section, settings_section,
    shared_settings_section, runs_section,
)  # fmt: skip
DIFFER, FREE = "Settings that differ", "Differences without an effect on training"


def tables_of(card: Scorecard) -> dict[str, pd.DataFrame]:
    blocks = settings_section(card).blocks
    return {block.title: block.rows for block in blocks if isinstance(block, Table)}


def configured(make_run: MakeRun, variant: str, seed: int = 1, lr: float = 6e-4, folder: str | None = None,
               **sections: dict) -> Path:  # fmt: skip
    own = {"train": {"init_seed": seed, "steps": 200}}
    config = recipe(variant) | {key: own.get(key, {}) | value for key, value in (own | sections).items()}
    return make_run(variant, seed, folder=folder, recipe=config, engine=engine(lr))


def test_a_column_holds_runs_that_are_set_alike(make_run: MakeRun) -> None:
    runs = [configured(make_run, variant, seed) for variant in ("rmsnorm", "vanilla") for seed in (1, 2)]
    runs.append(configured(make_run, "lns", lr=3e-4))
    runs.append(configured(make_run, "lns", 2, lr=3e-4, data={"document_mask": True}))
    table = tables_of(card_of(*runs))[DIFFER].set_index("setting")
    assert [*table] == ["A", "B", "C", "what follows"]
    assert set(table.loc["runs", "A"].split(", ")) == {"rmsnorm", "vanilla"}
    assert table.loc["ds.optimizer.params.lr", ["A", "B", "C"]].tolist() == ["0.0006", "0.0003", "0.0003"]
    assert table.loc["ds.optimizer.params.lr", "what follows"] == "no verdict where it differs"
    assert table.loc["data.document_mask", ["A", "B", "C"]].tolist() == ["false", "false", "true"]
    assert table.loc["data.document_mask", "what follows"] == "not compared where it differs"
    assert [*table.index] == ["runs", "data.document_mask", "ds.optimizer.params.lr"]


def test_seeds_and_designs_are_no_difference(make_run: MakeRun) -> None:
    card = card_of(*(configured(make_run, name, seed) for name in ("vanilla", "rmsnorm") for seed in (1, 2)))
    section = settings_section(card)
    assert [*tables_of(card)] == ["What the designs are"]
    (said,) = (block.lines for block in section.blocks if isinstance(block, Sentences))
    assert said == ["All 4 runs are set alike, in all but design and seed."]


def test_what_has_no_effect_on_training_stands_apart(make_run: MakeRun) -> None:
    card = card_of(
        configured(make_run, "vanilla"),
        configured(make_run, "rmsnorm", train={"val_every": 7}, data={"workers": 3}),
    )
    tables = tables_of(card)
    assert DIFFER not in tables
    free = tables[FREE].set_index("setting")
    assert free.loc["train.val_every"].tolist() == ["50", "7"] and free.loc["data.workers", "B"] == "3"
    assert [*free] == ["A", "B"]


def test_facts_of_summaries_differ_without_any_config(make_run: MakeRun) -> None:
    card = card_of(
        make_run("vanilla", source_fingerprint="content:abc" + "0" * 60), make_run("rmsnorm", world_size=4)
    )
    table = tables_of(card)[DIFFER].set_index("setting")
    assert table.loc["number of processes"].tolist() == ["2", "4", "compared; adds rounding noise"]
    assert table.loc["training data", ["A", "B"]].tolist() == ["abc000000000", "-"]


def test_designs_are_what_their_recipes_hold(make_run: MakeRun) -> None:
    runs = [configured(make_run, name) for name in ("rmsnorm_parallel", "vanilla")]
    table = tables_of(card_of(*runs))["What the designs are"].set_index("design")
    assert [*table.index] == ["vanilla (baseline)", "rmsnorm_parallel"] and "topology" not in table
    parallel = table.loc["rmsnorm_parallel"]
    assert (parallel["norm"], parallel["block"]) == ("rmsnorm", "parallel (shared_norm=true)")
    assert "2204.02311" in parallel["source"]


def test_shared_settings_are_all_others_with_their_defaults(make_run: MakeRun) -> None:
    runs = [configured(make_run, "vanilla"), configured(make_run, "rmsnorm", lr=3e-4)]
    section = shared_settings_section(card_of(*runs))
    values = section.blocks[0].rows.set_index("setting")["value"]
    assert section.kind == "folded" and "ds.optimizer.params.lr" not in values
    assert values["train.max_skipped_steps"] == "10" and values["ds.optimizer.params.weight_decay"] == "0.1"
    assert values["schedule.warmup"] == "10" and values["number of trained tokens"] == "1,638,400"
    assert not any(key.startswith(("train.init_seed", "data.seed", "tracking.")) for key in values.index)


def test_resolved_keys_and_groups_are_the_ones_compared(make_run: MakeRun) -> None:
    """A key of a group has the value that the comparison has, and none is in neither."""
    run = configured(make_run, "vanilla", model={"mlp": "gelu", "n_layer": 3}, eval={"limit": 5})
    keys = resolved_keys(run)
    compared = {key: value for group in settings_of(run).values() for key, value in group.items()}
    assert compared.items() <= keys.items() and compared["model.mlp"] == "gelu"
    assert all(group_of(key) for key in compared)
    assert group_of("eval.limit") is None and keys["eval.limit"] == 5 and group_of("model.n_layer") is None


def test_a_share_of_the_steps_is_the_same_warm_up_as_their_number(make_run: MakeRun) -> None:
    share = configured(make_run, "vanilla")
    recipe_file = share / "recipe.yaml"
    content = yaml.safe_load(recipe_file.read_text())
    content["schedule"]["warmup"] = 0.05
    recipe_file.write_text(yaml.safe_dump(content))
    assert DIFFER not in tables_of(card_of(share, configured(make_run, "rmsnorm")))


def test_every_run_has_its_facts(make_run: MakeRun) -> None:
    runs = [configured(make_run, "rmsnorm", seed) for seed in (1, 2)] + [configured(make_run, "vanilla")]
    section = runs_section(card_of(*runs))
    table = section.blocks[1].rows.set_index("run")
    assert section.kind == "folded" and [*table.index] == [
        "vanilla, seed 1",
        "rmsnorm, seed 1",
        "rmsnorm, seed 2",
    ]
    summary = json.loads((runs[0] / "summary.json").read_text())
    facts = table.loc["rmsnorm, seed 1"]
    assert facts["folder"] == str(runs[0]) and facts["wall time"] == "2 min 03 s"
    assert facts["val loss"] == f"{summary['val_loss']:.4f}" and facts["learning rate"] == "0.0006"
    assert facts["tokens per second"] == "9,000" and facts["init seed"] == "1"


def test_a_setting_that_an_older_run_does_not_say_is_unknown(make_run: MakeRun) -> None:
    card = card_of(make_run("vanilla", source_fingerprint="content:abc"), make_run("rmsnorm"))
    assert any("training data (content:abc in vanilla; unknown in rmsnorm)" in line for line in card.problems)


@pytest.mark.parametrize("kind", ["bare", "given", "tokenizers", "one", "only unfinished"])
def test_sections_stand_whatever_runs_there_are(make_run: MakeRun, tmp_path: Path, kind: str) -> None:
    """Every cell is a text and every line a sentence, whatever is not known of a run."""
    vanilla = make_run("vanilla", tasks={"piqa": {"acc": 0.5}})
    if kind == "bare":
        (other := tmp_path / "bare").mkdir()
        (other / "summary.json").write_text('{"status": "running", "variant": "rmsnorm"}')
    elif kind == "given":
        (other := tmp_path / "given" / "eval" / "step_00000000").mkdir(parents=True)
        other = tmp_path / "given"
        facts = {"status": "given weights", "variant": "vanilla", "val_loss": 5.0, "val_fingerprint": "3f2a"}
        (other / "summary.json").write_text(json.dumps(facts))
    elif kind == "tokenizers":
        other = make_run(
            "rmsnorm", tokenizer="bytes", val_fingerprint="77", val_loss=1.2, floors={"unigram": 3.1}
        )
    elif kind == "one":
        other = vanilla
    else:
        vanilla = make_run("vanilla", 2, status="running", val_loss=None, step=0, tokens=0)
        other = make_run("rmsnorm", status="diverged", val_loss=None)
    card = card_of(vanilla, other)
    for build in SECTIONS:
        for block in build(card).blocks:
            if isinstance(block, Table):
                assert block.rows.map(lambda cell: isinstance(cell, str)).all(axis=None), block.title
                assert not block.rows.isin(["nan", "None"]).any(axis=None), block.title
            elif isinstance(block, Sentences):
                assert all(line.endswith(".") and "nan" not in line.split() for line in block.lines)
