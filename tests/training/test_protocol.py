"""The published protocol: recipe and engine file against its table, line by line, and its formulas."""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from model import GPT
from tests.distributed import of_rank
from tests.jobs import run
from tests.processes import ROOT
from tests.training.command_lines import be_rank_0
from training.config import DeepSpeedConfig, Recipe, read_command
from training.engine.build import parameter_groups
from training.schedule import learning_rate

PAGE = ROOT.parent / "shared" / "PROTOCOL.md"
FILES = [
    "--config", str(ROOT / "recipes" / "protocol_climbmix.yaml"),
    "--deepspeed_config", str(ROOT / "ds_configs" / "protocol.json"),
]  # fmt: skip
FINEWEB = ["gpt2_small", "gpt2_medium", "gpt2_large", "gpt2_xl"]
# A row of the page's table -> what it says, and what --explain says of it on two ranks.
TABLE: dict[str, tuple[list[str], list[str]]] = {
    "model": (
        ["24 layers, 16 heads, width 1024, context 1024, vocabulary 50257 padded to 50304",
         "tied embeddings", "learned positions", "GELU (exact)", "`bias=False`", "no dropout"],
        ["24 layers, 16 heads, width 1024, context 1024, vocabulary 50257 (gpt2) padded to 50304",
         "positions learned", "tied true", "mlp gelu", "bias false", "dropout 0.0", "qk_norm none",
         "z_loss 0.0", "logit_softcap 0.0", "354,599,936 parameters"],
    ),
    "initial weights": (
        ["normal 0.02", "`c_proj.weight` 0.02/sqrt(2 n_layer)"],
        [r"wte.weight +50304 x 1024 +1 +sd 0.0200", r"wpe.weight +1024 x 1024 +1 +sd 0.0200",
         r"attn.c_attn.weight +3072 x 1024 +24 +sd 0.0200", r"mlp.c_fc.weight +4096 x 1024 +24 +sd 0.0200",
         r"attn.c_proj.weight +1024 x 1024 +24 +sd 0.00289",
         r"mlp.c_proj.weight +1024 x 4096 +24 +sd 0.00289",
         r"ln_1.weight +1024 +24 +1 +0 ", r"ln_f.weight +1024 +1 +1 +0 "],
    ),
    "data, as stated": (["FineWeb", "GPT-2 BPE"], [r"50257 \(gpt2\)"]),
    "data, as found": (
        ["`karpathy/climbmix-400b-shuffle`", "column `text`", "`shard_06542` held out"],
        ["karpathy/climbmix-400b-shuffle, files shard_{00000..00129}.parquet", "text_column text",
         "held out: hf://datasets/karpathy/climbmix-400b-shuffle/shard_06542.parquet"],
    ),
    # Where NormLab departs: every token once, in an order that a seed fixes.
    "sampling": (["windows of 1024", "with replacement"], ["documents in an order fixed by seed 1234"]),
    "budget": (
        ["12,030 iterations x 576 sequences (96 x 6 accumulation steps over all ranks) x 1024",
         "= 7.1 B tokens, 20 a parameter"],
        [r"576 sequences of 1024 tokens = 589,824 tokens per step \(96 x 3 accumulation steps x 2 ranks\)",
         "12,031 steps, counted from 0 = 7,096,172,544 tokens"],
    ),
    "world": (["2 GPUs"], ["x 2 ranks"]),
    "numerics": (
        ["**fp32 parameters, bf16 autocast**", "`torch.compile`", "AdamW fused", "betas (0.9, 0.95)",
         "eps 1e-8", "weight decay 0.1 on tensors of two or more dimensions", "clipping 1.0"],
        ["fp32 parameters, bf16 autocast; gradients summed in fp32, sent in fp32; ZeRO-1",
         "torch.compile of the blocks: yes", "AdamW: .*fused True", r"betas \[0.9, 0.95\]", "eps 1e-08",
         "weight_decay 0.1", "354,549,760 parameters decay, 50,176 do not", "clipped to a norm of 1$"],
    ),
    "learning rate": (
        ["**6e-4**", "**3e-4**", "**4 % of the steps (481)**", "`lr * (step + 1) / (warmup + 1)`",
         "cosine to a tenth of the peak at the last step"],
        [r"peak 0.0003; linear warm-up over 481 steps, \(step \+ 1\) / \(warm-up \+ 1\) of the peak; "
         "cosine to 0.1 of it at step 12030", "step +481: 3.000000e-04", "step +12,030: 3.000000e-05"],
    ),
    "validation loss": (["200 random batches of 96 x 1024"], ["tasks: .*published_validation"]),
    "WikiText-2, LAMBADA perplexity": (
        ["non-overlapping windows of 1024"], ["tasks: wikitext2_windows, lambada_windows"]
    ),
    "accuracies": (
        ["ARC-Easy, HellaSwag; PIQA, WinoGrande"], ["tasks: .*arc_easy, hellaswag, piqa, winogrande"]
    ),
    "seed": (["42, one"], ["drawn with init_seed 42"]),
}  # fmt: skip


def resolved(*options: str, ranks: int = 2) -> tuple[Recipe, DeepSpeedConfig]:
    with pytest.MonkeyPatch.context() as patch:
        be_rank_0(patch, ranks)
        recipe, ds, _, _ = read_command([*FILES, *options])
    return recipe, ds


@pytest.fixture(scope="module")
def explained(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What `--explain` prints on the first of two ranks that nobody started."""
    run_dir = tmp_path_factory.mktemp("explained") / "run"
    result = run([*FILES, "--run_dir", str(run_dir), "--explain"], main=explain_on_two_ranks)
    assert result.returncode == 0, result.stderr
    assert not run_dir.exists()
    return result.stdout


def explain_on_two_ranks(words: list[str]) -> int:
    import os

    import train

    os.environ |= of_rank(0, 2, 29500)
    return train.main(words)


def test_explain_prints_the_protocol_line_by_line(explained: str) -> None:
    for row, (_, phrases) in TABLE.items():
        missing = [phrase for phrase in phrases if not _found(phrase, explained)]
        assert not missing, f"{row}: {missing}\n{explained}"
    assert len(re.findall(r"^  step +[\d,]+: ", explained, re.MULTILINE)) == 10


def _found(phrase: str, text: str) -> bool:
    return phrase in text or re.search(phrase, text, re.MULTILINE) is not None


@pytest.mark.skipif(not PAGE.is_file(), reason="the protocol's page is not here")
def test_the_table_is_the_pages() -> None:
    section = PAGE.read_text().partition("## The recipe")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| ([^|]+?) \| (.*) \|$", section, re.MULTILINE))
    assert rows.keys() - {"what"} == TABLE.keys()
    for row, (said, _) in TABLE.items():
        assert [part for part in said if part not in rows[row]] == [], row


@pytest.mark.parametrize("peak", [3e-4, 6e-4])
def test_the_learning_rate_is_the_published_one_at_every_step(peak: float) -> None:
    recipe, ds = resolved("--ds.optimizer.params.lr", str(peak))
    warmup_iters, lr_decay_iters, min_lr = 481, 12030, peak / 10

    def get_lr(it: int) -> float:
        if it < warmup_iters:
            return peak * (it + 1) / (warmup_iters + 1)
        if it > lr_decay_iters:
            return min_lr
        decay_ratio = (it - warmup_iters) / (lr_decay_iters - warmup_iters)
        return min_lr + 0.5 * (1.0 + math.cos(math.pi * decay_ratio)) * (peak - min_lr)

    steps = range(recipe.train.steps)
    assert len(steps) == 12031
    ours = [learning_rate(step, ds.peak_lr, recipe.schedule) for step in steps]
    assert ours == pytest.approx([get_lr(step) for step in steps], rel=1e-12)
    assert ours[-1] == pytest.approx(min_lr, rel=1e-12)


def test_parameters_groups_and_count_are_the_published() -> None:
    recipe, ds = resolved()
    with torch.device("meta"):
        gpt = GPT(recipe.model)
    width, layers = 1024, 24
    matrices = 50304 * width + 1024 * width + layers * 12 * width * width
    gains = layers * 2 * width + width
    groups = {g["weight_decay"]: sum(p.numel() for p in g["params"]) for g in parameter_groups(gpt, 0.1)}
    assert groups == {0.1: matrices, 0.0: gains}
    assert gpt.num_parameters() == matrices + gains == 354_599_936
    assert [name for name, p in gpt.named_parameters() if p.dim() < 2 and "ln_" not in name] == []
    assert ds.weight_decay == 0.1


def test_initial_weights_have_the_published_standard_deviations() -> None:
    recipe, _ = resolved()
    torch.manual_seed(recipe.train.init_seed)
    gpt = GPT(replace(recipe.model, n_embd=128, vocab_size=2048))
    for name, p in gpt.named_parameters():
        if p.dim() < 2:
            assert torch.equal(p.detach(), torch.ones_like(p)), name
            continue
        published = 0.02 / math.sqrt(2 * 24) if name.endswith("c_proj.weight") else 0.02
        # three times the error of a standard deviation from so many draws, for each of a hundred tensors
        assert float(p.detach().std()) == pytest.approx(published, rel=4 / math.sqrt(2 * p.numel())), name


def test_the_sibling_task_has_its_own_length() -> None:
    files = ["--config", str(ROOT / "recipes" / "sibling_residual_climbmix.yaml"), *FILES[2:]]
    recipe, ds = resolved(*files, "--ds.train_batch_size", "512", "--ds.train_micro_batch_size_per_gpu", "64")
    assert (recipe.schedule.steps, recipe.schedule.warmup_steps, ds.train_batch_size) == (13535, 541, 512)
    main, _ = resolved()
    assert (recipe.model, recipe.data, recipe.eval) == (main.model, main.data, main.eval)


@pytest.mark.parametrize("size", FINEWEB)
def test_fineweb_recipes_have_the_protocols_model_and_schedule(size: str) -> None:
    here = ROOT / "recipes" / f"{size}_fineweb.yaml"
    engine = ["--deepspeed_config", str(ROOT / "ds_configs" / "zero1_bf16.json")]
    recipe, ds = resolved("--config", str(here), *engine)
    main, published = resolved()
    shape = ("n_layer", "n_head", "n_embd")
    assert recipe.model == replace(main.model, **{key: getattr(recipe.model, key) for key in shape})
    schedule = replace(main.schedule, steps=recipe.train.steps)
    assert recipe.schedule == schedule and schedule.warmup_steps == round(0.04 * recipe.train.steps)
    assert (recipe.data.source, ds.train_batch_size) == ("HuggingFaceFW/fineweb", 576)
    assert recipe.eval.tasks == ("wikitext", "lambada_openai", "arc_easy", "hellaswag", "piqa", "winogrande")
    assert (ds.precision, published.precision, ds.stage) == ("bf16", "autocast_bf16", 1)
    same: dict[str, Any] = {"lr": 6e-4}
    assert ds.optimizer_params == published.optimizer_params | same
    assert ds.raw["gradient_clipping"] == published.raw["gradient_clipping"] == 1.0


def test_the_medium_recipe_spends_the_published_budget_on_fineweb() -> None:
    here: dict[str, Any] = yaml.safe_load(Path(ROOT, "recipes", "gpt2_medium_fineweb.yaml").read_text())
    assert here["train"]["steps"] == 12030 and here["data"]["subset"] == "sample-10BT"
