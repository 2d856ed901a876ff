"""What the JSON files of a run folder hold, as far as anything reads them: `read_json` refuses the rest.

A key that is missing or null is not known, as in a run that an older NormLab wrote.
"""

from typing import Any, TypedDict

Number = float | None
Text = str | None


class Floors(TypedDict, total=False):
    """Losses of models that have learnt nothing, or the tokens' frequencies alone: nats per token."""

    uniform: float
    unigram: float


class StepSeconds(TypedDict, total=False):
    """Percentiles of a step's time."""

    p50: Number
    p90: Number
    p99: Number


class Throughput(TypedDict, total=False):
    """Speed and memory of the run."""

    tokens_per_s: Number
    peak_memory_gib: Number
    step_s: StepSeconds | None
    time_share: dict[str, float] | None
    mfu: Number


class Change(TypedDict):
    """A key that was changed while the run was under way."""

    step: int
    key: str
    before: Any
    now: Any


class SummaryFile(TypedDict, total=False):
    """summary.json."""

    status: Text
    variant: Text
    step: int | None
    steps: int | None
    tokens: int | None
    tokens_per_step: int | None
    tokens_per_s: Number
    wall_time_s: Number
    heartbeat: Number
    val_loss: Number
    val_bits_per_byte: Number
    val_tokens: int | None
    val_bytes: int | None
    floors: Floors | None
    spikes: int | None
    explosions: int | None
    rollbacks: int | None
    passed_batches: int | None
    skipped_steps: int | None
    ended_above_floor: bool | None
    parameters: int | None
    flops_per_token: Number
    world_size: int | None
    model: Text
    block_size: int | None
    precision: Text
    packing: Text
    tokenizer: Text
    init_seed: int | None
    data_seed: int | None
    data_lanes: int | None
    data_asked: dict[str, Any] | None
    data_fingerprint: Text
    val_fingerprint: Text
    val_text_fingerprint: Text
    source_fingerprint: Text
    tokenizer_fingerprint: Text
    design_fingerprint: Text
    init_fingerprint: Text
    buffers: str
    cast_buffers: list[str]
    unused_parameters: list[str]
    sometimes_unused_parameters: list[str]
    mixes_tokens: bool | None
    preflight: Text
    last_checkpoint: Text
    best_checkpoint: Text
    throughput: Throughput | None
    evaluation: dict[str, Any] | None
    wandb: dict[str, Any] | None
    divergence: dict[str, Any] | None
    candidate_overrides: dict[str, Any] | None
    recipe_changes: list[Change]
    error: Text
    log: str
    failed_rank: int


class EnvironmentFile(TypedDict, total=False):
    """environment.json."""

    command: list[str]
    world_size: int
    gpus: list[str] | None
    cpus: int
    git_commit: Text


class Optimizer(TypedDict, total=False):
    """Of DeepSpeed's JSON."""

    type: str
    params: dict[str, Any]


class EngineFile(TypedDict, total=False):
    """ds_config.json."""

    optimizer: Optimizer


class Check(TypedDict):
    """One of the pre-flight check."""

    name: str
    status: str
    detail: str


class PreflightFile(TypedDict):
    """preflight.json."""

    passed: bool
    checks: list[Check]


class FailureFile(TypedDict):
    """failure.json."""

    rank: int
    host: str
    signal: Text
    step: int | None
    sentence: str
    log: str


class Scored(TypedDict, total=False):
    """How many items of a task there are, and were scored."""

    original: int
    effective: int


class How(TypedDict, total=False):
    """What NormLab adds to an evaluation's results: how many items, and by task where its data lie."""

    variant: Text
    precision: Text
    step: int | None
    tokens: int | None
    limit: Number
    eval_data: dict[str, Text]
    num_fewshot: dict[str, int | None]
    definitions: dict[str, Text]


_WithDashes = TypedDict(
    "_WithDashes", {"n-samples": dict[str, Scored], "n-shot": dict[str, Any]}, total=False
)


class ResultsFile(_WithDashes, total=False):
    """results.json of an evaluation, in lm-eval's form. It is known by its `results` and `normlab`."""

    results: dict[str, dict[str, Any]]
    normlab: How
    groups: dict[str, Any]
    group_subtasks: dict[str, list[str]]
    configs: dict[str, Any]
    versions: dict[str, Any]
    higher_is_better: dict[str, Any]
    task_hashes: dict[str, Any]


class StateFile(TypedDict, total=False):
    """trainer_state.json of a checkpoint."""

    rollbacks: int
    wandb_id: Text


class Rollback(TypedDict):
    """One that was made: its first bad step, and the batches that are passed over since."""

    first: int
    passed: list[int]


class RollbacksFile(TypedDict):
    """rollbacks.json."""

    rollbacks: list[Rollback]
