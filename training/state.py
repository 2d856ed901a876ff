"""What a run must carry over a stop, beside weights and optimizer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .step import StepResult


@dataclass
class TrainState:
    """What a run needs, beside weights and optimizer, to go on as if it had never stopped."""

    step: int = 0
    """Optimizer steps taken, skipped ones included."""
    tokens: int = 0
    """Target tokens trained on."""
    skipped_steps: int = 0
    """Steps that the engine did not apply because a gradient was not finite."""
    skipped_in_a_row: int = 0
    """Steps with a loss or gradients that were not finite that came last, without another between."""
    bad_documents: dict[str, int] = field(default_factory=dict)
    """Documents that were left out, by reason."""
    wall_time_s: float = 0.0
    """Seconds spent in the loop, validation and checkpoints included."""
    cursors: dict[int, Sequence[int]] = field(default_factory=dict)
    """Lane -> (epoch, window, row, offset) of its next token; between saves a rank keeps only its own."""
    data_fingerprint: str | None = None
    """Of the source and the tokenizer that the cursors belong to."""
    rng: list[dict[str, str]] = field(default_factory=list)
    """Each rank's torch generators, as hex."""
    wandb_id: str | None = None
    """The W&B run that every start of this run continues."""
    val_loss: float | None = None
    """The latest validation loss, nats per token."""
    val_bits_per_byte: float | None = None
    """The same in bits per byte of text."""
    best_val_loss: float | None = None
    """Lowest validation loss so far, nats per token."""
    best_step: int | None = None
    """The step that had it."""
    validation_due: bool = False
    """Whether a validation follows this step that is not made yet: a stop came before it, or gave it up."""
    passed_batches: list[int] = field(default_factory=list)
    """Global batches before the next one that were passed over, by number in the order of the data: the next
    sequence is (step + how many there are) times the sequences per step."""
    rollbacks: int = 0
    """How often the run went back, before it came here."""
    losses: list[float | None] = field(default_factory=list)
    """Of the latest steps, nats per token; None where it was not finite."""
    lowest_loss: float | None = None
    """The lowest of all steps before those."""
    spikes: int = 0
    """Spikes of the training loss; steps next to each other are one."""
    last_spike: int | None = None
    """The step of the latest."""
    explosions: int = 0
    """How often the loss rose and stayed up."""
    exploded_at: int | None = None
    """The latest step at which it had."""

    def advance(self, result: "StepResult") -> None:
        """Count a step that all ranks have made."""
        self.step += 1
        self.tokens += result.tokens
        self.skipped_steps += not result.applied
        self.skipped_in_a_row = 0 if result.is_finite else self.skipped_in_a_row + 1
        self.cursors.update(result.cursors)
        self.bad_documents = result.bad_documents

    def note_validation(self, loss: float, bits_per_byte: float) -> None:
        """Remember a validation after this step, and whether it is the best so far; a NaN never is."""
        self.val_loss, self.val_bits_per_byte, self.validation_due = loss, bits_per_byte, False
        if math.isfinite(loss) and (self.best_val_loss is None or loss < self.best_val_loss):
            self.best_val_loss, self.best_step = loss, self.step

    def divergence_facts(self) -> dict[str, int]:
        """What summary.json says of spikes, explosions and rollbacks."""
        return {
            "spikes": self.spikes,
            "explosions": self.explosions,
            "rollbacks": self.rollbacks,
            "passed_batches": len(self.passed_batches),
        }
