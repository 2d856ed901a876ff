"""The recipe: everything about a run but its engine, which `DeepSpeedConfig` describes."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from data import DataConfig, open_tokenizer
from model import PRESETS, GPTConfig, variant_name
from model.errors import UserError
from model.values import FROM_1, Range, check_ranges

from ..schedule import ScheduleConfig
from .deepspeed import DeepSpeedConfig
from .evaluation import EvalConfig
from .tracking import TrackingConfig

RANGES = {
    "steps": FROM_1,
    "init_seed": Range(at_least=-(2**63), below=2**63),  # what torch draws with
    "val_every": FROM_1,
    "checkpoint_every": FROM_1,
    "checkpoint_minutes": Range(above=0),
    "keep_checkpoints": FROM_1,
    "milestone_every": FROM_1,
    "max_rollbacks": Range(at_least=0),
    "max_minutes": Range(above=0),
    "activation_memory_budget": Range(above=0, at_most=1),
    "max_skipped_steps": FROM_1,
    "profile_steps": FROM_1,
}
"""Of TrainConfig's numbers."""


@dataclass(frozen=True)
class TrainConfig:
    """The run: how long, from which initial weights, and what is saved when.

    Attributes:
        steps: optimizer steps
        init_seed: draws the initial weights (and dropout); data.seed orders the documents
        init_from: takes the initial weights from there instead: a run's folder (its last checkpoint), one of
            its checkpoints' folders, an export, or a GPT-2 of Hugging Face; of the same shape and design
        val_every: steps between validations; one always follows the last step
        checkpoint_every: steps between checkpoints; one always follows the last step
        checkpoint_minutes: minutes between checkpoints, beside those of `checkpoint_every`
        keep_checkpoints: how many of the newest stay, beside the one with the best validation loss
        milestone_every: the checkpoints of every so many steps stay too; a multiple of `checkpoint_every`
        on_divergence: what follows a loss or gradients that are not finite: skip the step, rollback to the
            last good checkpoint and pass over the batches that led there, or stop; the last two also follow a
            loss that explodes
        max_skipped_steps: so many steps in a row with gradients that are not finite end the run as diverged
        max_rollbacks: so many rollbacks may happen in a run; the next divergence ends it as diverged
        max_minutes: after so many minutes since the command began, the run is saved and stops as by a signal
        stop_file: the run is saved and stops once this file exists; a relative one lies in the run folder
        preflight: whether the design is checked before the run begins; --skip_preflight sets it to false
        compile: whether torch.compile compiles the blocks; it changes numbers by rounding only
        activation_memory_budget: the share of what compiled blocks would keep for backward that they may
            keep; the rest is computed again, what takes least FLOPs first; 1 is torch's own choice, and below
            it numbers change by rounding only
        diagnostics: whether each layer is measured at steps 1, 2, 4, 8 and so on and at the last, into
            diagnostics.parquet; training is the same bit for bit
        profile_steps: steps to profile, counted from this start; --profile sets it to 3, 4 and 5
        candidate_overrides: what is done with the CONFIG_OVERRIDES of a candidate's file: apply (the command
            line is stronger, recipe and JSON are weaker), ignore, or refuse to train it
    """

    steps: int = 200
    init_seed: int = 1
    init_from: str | None = None
    val_every: int = 50
    checkpoint_every: int = 50
    checkpoint_minutes: float | None = None
    keep_checkpoints: int = 2
    milestone_every: int | None = None
    on_divergence: Literal["skip", "rollback", "stop"] = "skip"
    max_skipped_steps: int = 10
    max_rollbacks: int = 3
    max_minutes: float | None = None
    stop_file: str | None = None
    preflight: bool = True
    compile: bool = True
    activation_memory_budget: float = 1.0
    diagnostics: bool = True
    profile_steps: tuple[int, ...] = ()
    candidate_overrides: Literal["apply", "ignore", "refuse"] = "apply"

    def __post_init__(self) -> None:
        check_ranges("train", self, RANGES)
        every, milestone = self.checkpoint_every, self.milestone_every
        if milestone is not None and milestone % every:
            raise UserError(
                f"train.milestone_every is {milestone}, which is no multiple of train.checkpoint_every "
                f"({every}): give {-(-milestone // every) * every}, or other steps between checkpoints"
            )


@dataclass(frozen=True)
class Recipe:
    """What is trained on which data, for how long, and how the result is scored: a section for each."""

    model: GPTConfig
    data: DataConfig
    train: TrainConfig
    schedule: ScheduleConfig
    eval: EvalConfig
    tracking: TrackingConfig

    def __post_init__(self) -> None:
        needed = open_tokenizer(self.data.tokenizer).vocab_size
        if self.model.vocab_size < needed:
            raise UserError(
                f"model.vocab_size is {self.model.vocab_size}: data.tokenizer {self.data.tokenizer} needs at "
                f"least {needed}"
            )

    @property
    def variant(self) -> str:
        """The name that this recipe's results carry."""
        return variant_name(self.model)

    def tags(self, deepspeed: DeepSpeedConfig) -> tuple[str, str, str]:
        """Words that a run is found by: variant, size (gpt2_small, or 2x64: layers and width), precision."""
        shape = self.model
        names = (name for name, sizes in PRESETS.items() if sizes.items() <= vars(shape).items())
        return self.variant, next(names, f"{shape.n_layer}x{shape.n_embd}"), deepspeed.precision

    def facts(self, deepspeed: DeepSpeedConfig) -> dict[str, Any]:
        """What summary.json says of a run before anything is built."""
        shape, data = self.model, self.data
        return {
            "variant": self.variant,
            "precision": deepspeed.precision,
            "model": f"{shape.n_layer}L {shape.n_head}H {shape.n_embd}d",
            "block_size": shape.block_size,
            "init_seed": self.train.init_seed,
            "data_seed": data.seed,
            "tokenizer": data.tokenizer,
            "packing": f"{data.packing} masked" if data.document_mask else data.packing,
            "steps": self.train.steps,
            "tokens_per_step": deepspeed.train_batch_size * shape.block_size,
        }


SECTIONS: dict[str, type] = {
    "model": GPTConfig,
    "data": DataConfig,
    "train": TrainConfig,
    "schedule": ScheduleConfig,
    "eval": EvalConfig,
    "tracking": TrackingConfig,
}
FREE_TO_CHANGE = {
    "train.steps",
    "train.val_every",
    "train.checkpoint_every",
    "train.checkpoint_minutes",
    "train.keep_checkpoints",
    "train.milestone_every",
    "train.on_divergence",
    "train.max_skipped_steps",
    "train.max_rollbacks",
    "train.max_minutes",
    "train.stop_file",
    "train.preflight",
    "train.diagnostics",
    "train.profile_steps",
    "train.candidate_overrides",  # what they set is not free
    # A run knows its data by what its files hold, and stays with its commit unless another is asked for.
    "data.revision",
    "data.validation_revision",
    "data.workers",
    "data.prefetch",
    "data.cache_dir",
    "data.on_bad_document",
    "data.timeout_s",
    "eval",
    "tracking",
    # The same global batch from another number of ranks: ds.train_batch_size is not free.
    "ds.checkpoint.load_universal",
    "ds.train_micro_batch_size_per_gpu",
    "ds.gradient_accumulation_steps",
}
"""What may differ when a run goes on: it does not enter the numbers of a step."""


def check_design(recipe: Recipe) -> None:
    """Build the design once, small, so that one that cannot be built is refused before anything else is.

    It imports torch. Raises UserError with one sentence.
    """
    from model import GPT

    gpt = GPT(replace(recipe.model, n_embd=8 * recipe.model.n_head, block_size=8, vocab_size=64))
    if recipe.data.document_mask:
        gpt.check_document_mask()
