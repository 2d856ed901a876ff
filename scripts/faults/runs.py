"""The small run that is tortured: its files, its command, and whether it ended as an undisturbed one."""

import json
import pydoc_data.topics
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .ambush import Ambush, operations
from .jobs import Job
from .server import Forks

RECIPE = """
model: {variant: vanilla, n_layer: 2, n_head: 2, n_embd: 32, block_size: 32, dropout: 0.1}
data: {tokenizer: bytes, validation_tokens: 4000, lanes: 4}
train: {val_every: 4, checkpoint_every: 3, compile: false, preflight: false, diagnostics: false}
schedule: {warmup: 2, steps: 60}
eval: {after_training: false}
"""
DEEPSPEED = {
    "train_batch_size": 8,
    "train_micro_batch_size_per_gpu": 2,
    "gradient_clipping": 1.0,
    "zero_optimization": {"stage": 1},
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "weight_decay": 0.1, "torch_adam": True}},
}
UNIVERSAL = ("--ds.checkpoint.load_universal", "true")
VOLATILE = ("tokens_per_s", "data_wait", "mfu")
"""Times and speeds among the keys of metrics.jsonl, beside those that end in `_s`."""
START_LIMIT_S = 300.0
"""A run of seconds that has not ended by then never will, on however busy a machine."""


class TortureError(Exception):
    """The torture itself cannot go on: a run that nobody disturbed did not end well."""


@dataclass(frozen=True)
class Stage:
    """A part of a run: up to `steps`, on so many ranks."""

    ranks: int
    steps: int


class Bench:
    """A folder with a corpus, a recipe and a DeepSpeed JSON, and the runs made of them.

    Attributes:
        folder: holds everything.
        forks: where ranks are forked.
    """

    def __init__(self, folder: Path, forks: Forks) -> None:
        self.folder, self.forks = folder, forks
        if not (self.folder / "recipe.yaml").is_file():
            (folder / "corpus").mkdir(parents=True, exist_ok=True)
            forks.call(write_corpus, str(folder / "corpus" / "topics.parquet"))
            (folder / "fp32.json").write_text(json.dumps(DEEPSPEED))
            (folder / "recipe.yaml").write_text(RECIPE)

    def words(self, run_dir: Path, *options: str) -> list[str]:
        """The arguments of train.py."""
        recipe, engine = self.folder / "recipe.yaml", self.folder / "fp32.json"
        words = ["--config", str(recipe), "--deepspeed_config", str(engine), "--run_dir", str(run_dir)]
        given = [] if "--data.source" in options else ["--data.source", str(self.folder / "corpus")]
        return [*words, *given, *options]

    def start(self, run_dir: Path, *options: str, name: str = "", **how: Any) -> Job:
        """Begin or go on with a run; its output goes to a file of its name. See Job for `how`."""
        output = self.folder / "output" / f"{name or run_dir.name}.txt"
        output.parent.mkdir(exist_ok=True)
        return Job(self.forks, self.words(run_dir, *options), output, **how)

    def start_stage(self, run_dir: Path, stage: Stage, moves: bool, *more: str, **how: Any) -> Job:
        """One stage of a run; one that `moves` between numbers of ranks converts its checkpoints."""
        options = [*more, "--train.steps", str(stage.steps), *(UNIVERSAL if moves else ())]
        return self.start(run_dir, *options, ranks=stage.ranks, **how)

    def reference(self, stages: Sequence[Stage], *options: str) -> Path:
        """The run that nobody disturbs; made once. Beside it lies what its ranks did to their checkpoints."""
        name = "_".join([*(f"{stage.steps}on{stage.ranks}" for stage in stages), *options[1::2]])
        run_dir = self.folder / "undisturbed" / name
        if (run_dir / "complete").is_file():
            return run_dir
        shutil.rmtree(run_dir, ignore_errors=True)
        for number, stage in enumerate(stages):
            counting = {
                rank: Ambush("/checkpoints/", counted(run_dir, number, rank)) for rank in range(stage.ranks)
            }
            counted(run_dir, number, 0).parent.mkdir(parents=True, exist_ok=True)
            job = self.start_stage(run_dir, stage, len(stages) > 1, *options, ambushes=counting)
            if set(job.wait(START_LIMIT_S)) != {0}:
                raise TortureError(f"a run that nobody disturbed did not end well:\n{job.printed()}")
            seconds_file(run_dir, number).write_text(f"{job.seconds():.3f}")
        (run_dir / "complete").touch()
        return run_dir

    def differences(self, run_dir: Path, reference: Path) -> list[str]:
        """In what a run that has ended is not the undisturbed one, a sentence for each."""
        return self.forks.call(differences, str(run_dir), str(reference))


def counted(reference: Path, stage: int, rank: int) -> Path:
    """Where the undisturbed run notes what a rank did to its checkpoints in a stage."""
    return reference.with_name(f"{reference.name}_operations") / f"stage{stage}_rank{rank}.txt"


def seconds_file(reference: Path, stage: int) -> Path:
    """Where the undisturbed run notes how long a stage took."""
    return counted(reference, stage, 0).with_name(f"stage{stage}_seconds.txt")


def seconds_of(reference: Path, stage: int) -> float:
    """How long a stage took, from start to end."""
    return float(seconds_file(reference, stage).read_text())


def operations_of(reference: Path, stage: int, rank: int, inside: str) -> int:
    """How many things a rank did to files whose path has that part."""
    return sum(inside in line for line in operations(counted(reference, stage, rank)))


def write_corpus(file: str) -> None:
    """Real English, which every Python has with it: its paragraphs as documents, in row groups of four."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pages = [text for _, text in sorted(pydoc_data.topics.topics.items())]
    texts = [part for text in pages for part in text.split("\n\n") if len(part) > 200]
    pq.write_table(pa.table({"text": texts}), file, row_group_size=4)


def differences(run_dir: str, reference: str) -> list[str]:
    """The lines of metrics.jsonl, but for times and speeds, and the fp32 weights: equal to the last bit?"""
    import torch

    from training.engine.weights import load_model

    ours, theirs = settled_metrics(Path(run_dir)), settled_metrics(Path(reference))
    found = [] if len(ours) == len(theirs) else [f"{len(ours)} lines of metrics instead of {len(theirs)}"]
    found += [f"metrics: {left} instead of {right}" for left, right in zip(ours, theirs) if left != right]  # noqa: B905
    (gpt, step), (expected, last) = load_model(run_dir), load_model(reference)
    if step != last:
        return [*found, f"the last checkpoint is of step {step} instead of {last}"]
    weights = gpt.state_dict()
    return found + [
        f"{name} differs in {int((weights[name] != tensor).sum())} of {tensor.numel()} numbers"
        for name, tensor in expected.state_dict().items()
        if not torch.equal(weights[name], tensor)
    ]


def settled_metrics(run_dir: Path) -> list[Mapping[str, Any]]:
    """The lines of metrics.jsonl without times and speeds."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if key not in VOLATILE and not key.endswith("_s")}
        for line in lines
    ]


def steps_done(run_dir: Path) -> int:
    """The last step in metrics.jsonl."""
    file = run_dir / "metrics.jsonl"
    lines = file.read_text(errors="replace").splitlines() if file.is_file() else []
    return sum('"kind": "train"' in line for line in lines)


def read_json(file: Path) -> dict[str, Any]:
    """A JSON file of a run; empty where there is none, or a broken one."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
