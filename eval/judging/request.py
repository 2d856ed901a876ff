"""What scripts/judge.py is asked: a candidate, a baseline, and the runs that a verdict on it needs."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from model import DESIGN_KEYS, GPTConfig, design_files, design_fingerprint
from model.errors import UserError
from training.config.candidate import Overrides
from training.config.command_line import CommandLine, Given, Option
from training.config.commands import SHORTHANDS, resolve_command, run_name
from training.config.deepspeed import DeepSpeedConfig
from training.config.recipe import SECTIONS, Recipe
from training.run.reader import file_sha256

ROOT = Path(__file__).resolve().parents[2]
RECIPE, DEEPSPEED_CONFIG = "recipes/sample.yaml", "ds_configs/zero1_bf16_cpu.json"
SEEDS, BASELINE = 3, "vanilla"
Role = Literal["candidate", "baseline"]
JUDGE = CommandLine(
    prog="scripts/judge.py",
    usage="python scripts/judge.py MY_DESIGN.py [--recipe RECIPE.yaml] [--deepspeed_config DS.json] "
    "[--seeds N]\n                 [--baseline NAME] [--ranks N] [--runs DIR] [--json FILE] "
    "[--section.key VALUE ...] [--ds.path.to.key VALUE ...]",
    description="One candidate from check to verdict: the pre-flight check, training beside the baseline on "
    "paired seeds, evaluation, and whether it is better. The exit status is 0 where a verdict was given, "
    "whatever it is, 1 where the pre-flight check refuses the candidate or training failed, 2 for a command "
    "that cannot be, 3 where the candidate diverged, 75 where it was interrupted: the same command goes on.",
    sections=SECTIONS,
    shorthands=SHORTHANDS,
    options={
        "candidate": Option("the design: a file or a name of the catalogue; it may stand alone", "FILE.py"),
        "recipe": Option(f"the recipe of every run (default: {RECIPE})", "RECIPE.yaml"),
        "deepspeed_config": Option(f"the engine of every run (default: {DEEPSPEED_CONFIG})", "DS.json"),
        "seeds": Option(f"how many pairs of runs, of train.init_seed 1 to N (default: {SEEDS})", "N"),
        "baseline": Option(f"a name of the catalogue or a file (default: {BASELINE})", "NAME"),
        "ranks": Option("how many processes or GPUs train a run (default: 1)", "N"),
        "runs": Option("where run folders and ledger.jsonl are (default: runs)", "DIR"),
        "json": Option("a file for the verdict", "FILE"),
    },
    takes_deepspeed=True,
    epilog="What is said of the design (model.norm, model.block_options.key, ...) is the candidate's, every "
    "other key is for both.",
)


@dataclass(frozen=True)
class Trial:
    """One of the runs that a verdict needs.

    Attributes:
        role: whose it is
        seed: its `train.init_seed`
        words: train.py's arguments, but for --run_dir
        recipe: as resolved
        deepspeed: the engine, as resolved
        overrides: what the candidate's file changed in both
        recipe_file: which it was
    """

    role: Role
    seed: int
    words: tuple[str, ...]
    recipe: Recipe
    deepspeed: DeepSpeedConfig
    overrides: Overrides
    recipe_file: Path

    @property
    def name(self) -> str:
        """For its folder."""
        return run_name(self.recipe_file, self.recipe)

    @property
    def tokens(self) -> int:
        """How many it trains on."""
        return self.recipe.train.steps * self.deepspeed.train_batch_size * self.recipe.model.block_size

    def settings(self) -> dict[str, Any]:
        """Rates, size and length of the run, as they are resolved."""
        schedule = self.recipe.schedule
        of_run = self.recipe.facts(self.deepspeed)
        rates = {
            "learning_rate": self.deepspeed.peak_lr,
            "weight_decay": self.deepspeed.optimizer_params.get("weight_decay", 0.0),
            "gradient_clipping": self.deepspeed.raw.get("gradient_clipping", 0.0),
            "schedule": schedule.shape,
            "warmup_steps": schedule.warmup_steps,
            "floor": schedule.floor,
        }
        return rates | {key: of_run[key] for key in of_run if key not in ("variant", "init_seed")}


@dataclass(frozen=True)
class JudgeRequest:
    """What is to be judged, and how.

    Attributes:
        candidate: as given
        recipe_file: of every run
        deepspeed_file: of every run
        changes: what the command line sets beside them
        ranks: of every run
        runs: the folder of run folders and ledger
        trials: the runs, in their order: of each seed the candidate's, then the baseline's
    """

    candidate: str
    recipe_file: str
    deepspeed_file: str
    changes: Mapping[str, str]
    ranks: int
    runs: Path
    trials: tuple[Trial, ...]

    def first(self, role: Role) -> Trial:
        """The first run of the candidate or of the baseline."""
        return next(trial for trial in self.trials if trial.role == role)


def read_judge(argv: list[str]) -> JudgeRequest:
    """The command line, checked, with every run resolved; nothing heavy is imported.

    Raises UserError or OSError with one sentence, and SystemExit after `--help`.
    """
    given = JUDGE.read(list(with_candidate(argv)))
    changes = {**given.keys, **{f"ds.{key}": value for key, value in given.deepspeed.items()}}
    for key, instead in (
        ("model.variant", "the candidate stands alone"),
        ("train.init_seed", "give --seeds"),
    ):
        if key in changes:
            raise UserError(f"--{key} is set by the judgment itself: {instead}")
    of_design = {key: value for key, value in given.keys.items() if _is_of_design(key)}
    candidate = given.options.get("candidate") or (BASELINE if of_design else None)
    if candidate is None:
        raise UserError("the candidate is missing: python scripts/judge.py MY_DESIGN.py")
    files = {
        "config": given.options.get("recipe", str(ROOT / RECIPE)),
        "deepspeed_config": given.options.get("deepspeed_config", str(ROOT / DEEPSPEED_CONFIG)),
    }
    baseline, ranks = given.options.get("baseline", BASELINE), _count(given, "ranks", 1)
    ours = _trial("candidate", [*_written(files | {"model.variant": candidate} | changes)], ranks)
    for_both = {key: value for key, value in changes.items() if key not in of_design}
    theirs = _trial("baseline", [*_written(files | {"model.variant": baseline} | for_both)], ranks)
    _check_apart(candidate, ours.recipe, theirs.recipe)
    seeds = range(1, _count(given, "seeds", SEEDS) + 1)
    trials = tuple(_with_seed(trial, seed) for seed in seeds for trial in (ours, theirs))
    runs = Path(given.options.get("runs", "runs"))
    recipe_file, deepspeed_file = files["config"], files["deepspeed_config"]
    return JudgeRequest(candidate, recipe_file, deepspeed_file, changes, ranks, runs, trials)


def with_candidate(argv: list[str]) -> Iterator[str]:
    """The words, with the one that belongs to no option as --candidate=WORD; UserError for two of them."""
    is_value, candidate = False, None
    for word in argv:
        is_option = word.startswith("-")
        if not is_option and not is_value:
            if candidate is not None:
                raise UserError(f"'{candidate}' and '{word}' are two candidates: judge one after the other")
            candidate, word = word, f"--candidate={word}"
        is_value = is_option and "=" not in word and word not in (*JUDGE.switches, "-h", "--help")
        yield word


def design_identity(config: GPTConfig) -> str:
    """A hash of a design: of its names and options, and of the code that comes from files."""
    files = design_files(config)
    design = {
        key: value.rpartition(":")[2] if key in files else value
        for key, value in ((key, getattr(config, key)) for key in DESIGN_KEYS)
    }
    text = json.dumps([design, design_fingerprint(config)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def describe_design(trial: Trial) -> dict[str, Any]:
    """A design's name and hashes: of its files whole, of the code that counts, and of all that makes it."""
    config = trial.recipe.model
    files = dict.fromkeys(design_files(config).values())
    return {
        "variant": trial.recipe.variant,
        "files": [{"path": str(path), "sha256": file_sha256(path)} for path in files],
        "code_fingerprint": design_fingerprint(config),
        "design_identity": design_identity(config),
    }


def _trial(role: Role, words: list[str], ranks: int) -> Trial:
    """The run of these words, of the recipe's own seed."""
    request, recipe, deepspeed, overrides = resolve_command(words, ranks)
    seed = recipe.train.init_seed
    return Trial(role, seed, tuple(words), recipe, deepspeed, overrides, request.recipe_file)


def _with_seed(trial: Trial, seed: int) -> Trial:
    recipe = replace(trial.recipe, train=replace(trial.recipe.train, init_seed=seed))
    return replace(trial, seed=seed, recipe=recipe, words=(*trial.words, f"--train.init_seed={seed}"))


def _is_of_design(key: str) -> bool:
    section, _, name = key.partition(".")
    return section == "model" and name.partition(".")[0] in DESIGN_KEYS


def _written(values: Mapping[str, Any]) -> list[str]:
    return [f"--{key}={value}" for key, value in values.items()]


def _count(given: Given, option: str, default: int) -> int:
    text = given.options.get(option, str(default))
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"--{option} is '{text}', but it must be a whole number of at least 1")
    return int(text)


def _check_apart(candidate: str, ours: Recipe, theirs: Recipe) -> None:
    """Raises UserError where candidate and baseline are one design, or two of one name."""
    if design_identity(ours.model) == design_identity(theirs.model):
        raise UserError(f"the candidate '{candidate}' is the baseline: there is nothing to compare")
    if ours.variant == theirs.variant:
        raise UserError(
            f"the candidate '{candidate}' would be called {ours.variant}, as the baseline is: rename its file"
        )
