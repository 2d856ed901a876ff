"""How a step's time grows with ranks: measured here, predicted by the plan for GPUs, and published by others.

    python scripts/bench_scaling.py [--ranks 1 2] [--rounds 3] [--micro_batch 8] [--n_layer 6] ...
        [--json FILE] [--config RECIPE.yaml --deepspeed_config DS.json --gpu H100 --mfu 0.4]

Every rank has the same micro-batches whatever their number, and efficiency is the time of a step on the
fewest ranks over that on these. Ranks are GPUs where there are some, else CPU processes of one thread each,
which share the memory's bandwidth. The prediction is scripts/plan.py's, for a recipe and a kind of GPU.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.checkout import refuse_other_checkout
from model.errors import UserError, print_error

refuse_other_checkout(__file__)

from contenders.options import add_numbers, free_port
from training.engine.libraries import set_allocators
from training.plan.command import MFU, MOST_GPUS, PlanRequest, read_plan

ROOT = Path(__file__).resolve().parents[1]
NODE_OF_GPUS = 8
"""The fewest GPUs that are predicted: others publish what they reach on a node and on more of them."""


@dataclass(frozen=True)
class Published:
    """What others reach.

    Attributes:
        what: model, parallelism and hardware
        source: where it stands
        unit: of the rates
        rates: of each GPU, by how many there are
    """

    what: str
    source: str
    unit: str
    rates: dict[int, float]

    def efficiency(self, gpus: int) -> float | None:
        """The rate on so many GPUs over that on the fewest; None where there is none."""
        return self.rates[gpus] / self.rates[min(self.rates)] if gpus in self.rates else None


PUBLISHED = (
    Published(
        "MPT-1B, FSDP, H100 (micro-batch 14 on 8 GPUs, 20 on more)",
        "https://github.com/mosaicml/llm-foundry/blob/main/scripts/train/benchmarking/README.md",
        "tokens/s per GPU",
        {8: 45455, 16: 46037, 32: 45130, 64: 44402},
    ),
    Published(
        "data parallel, as drawn by Hugging Face's Ultra-Scale Playbook (the figure names no model)",
        "https://huggingface.co/spaces/nanotron/ultrascale-playbook (dist/fragments/dp_scaling.html)",
        "tokens/s per GPU",
        {8: 40149.94, 16: 37609.69, 32: 35367.61, 64: 31112.23, 128: 26446.44, 256: 15700.38},
    ),
    Published(
        "a mixture of experts in JAX, FSDP in a node and data parallel over nodes, H100",
        "https://github.com/marin-community/marin/issues/6979",
        "MFU",
        {8: 0.267, 16: 0.262, 32: 0.264, 64: 0.265},
    ),
)
"""Weak scaling: the batch grows with the GPUs. Beyond 256 GPUs no figures of this kind were found."""


@dataclass(frozen=True)
class Predicted:
    """What the plan says of a number of GPUs.

    Attributes:
        gpus: how many
        step_s: seconds of a step in which each GPU has what it has on a node
        tokens_per_s: of each GPU then
        efficiency: the rate of each GPU over that on a node
        recipe_tokens_per_s: of each GPU where `train_batch_size` stays as it is, as in the plan's own table
        recipe_efficiency: the same over that on a node
    """

    gpus: int
    step_s: float
    tokens_per_s: float
    efficiency: float
    recipe_tokens_per_s: float
    recipe_efficiency: float


def main(argv: list[str]) -> int:
    """Measure, predict and print; returns the exit status."""
    options = read_options(argv)
    try:
        asked = read_plan(
            [
                *("--config", options.config, "--deepspeed_config", options.deepspeed_config),
                *("--gpus", f"{NODE_OF_GPUS}x{options.gpu}", "--mfu", str(options.mfu)),
            ]
        )
    except (UserError, OSError) as error:
        return print_error(error)
    here = measured(options)
    predicted = predict(asked)
    print_tables(here, predicted, asked)
    if options.json:
        facts: dict[str, Any] = {"here": here, "predicted": [vars(row) for row in predicted]}
        facts["published"] = [vars(published) for published in PUBLISHED]
        Path(options.json).write_text(json.dumps(facts, indent=2) + "\n")
    return 0


def read_options(argv: list[str]) -> argparse.Namespace:
    """The command line, with what follows from it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--ranks", type=int, nargs="*", default=[1, 2], help="default: 1 2; without: predict only"
    )
    parser.add_argument("--micro_batch", type=int, default=8, help="sequences; default: 8")
    add_numbers(parser)
    parser.add_argument("--config", default=str(ROOT / "recipes" / "gpt2_medium_fineweb.yaml"))
    parser.add_argument("--deepspeed_config", default=str(ROOT / "ds_configs" / "zero1_bf16.json"))
    parser.add_argument("--gpu", default="H100", help="a kind that scripts/plan.py knows; default: H100")
    parser.add_argument("--mfu", default=MFU, help=f"of the compute alone; default: {MFU}")
    options = parser.parse_args(argv)
    options.sequences = options.accumulation * options.micro_batch
    return options


def measured(options: argparse.Namespace) -> dict[int, dict[str, float]]:
    """Medians of what a step of NormLab takes on each number of ranks, which take turns."""
    import torch

    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    set_allocators()
    if not torch.cuda.is_available():
        os.environ["OMP_NUM_THREADS"] = "1"  # as many cores per rank, however many ranks there are
    seconds: dict[int, list[float]] = {count: [] for count in sorted(options.ranks)}
    for number in range(options.rounds):
        for count, of_count in seconds.items():
            of_count.append(seconds_per_step(options, count))
            print(f"round {number + 1}, {count} rank(s): {of_count[-1]:.3f} s per step", flush=True)
    found: dict[int, dict[str, float]] = {}
    for count, of_count in seconds.items():
        step_s = statistics.median(of_count)
        fewest = next(iter(found.values()))["step_s"] if found else step_s
        tokens = count * options.sequences * options.block_size
        found[count] = {"step_s": step_s, "tokens_per_s": tokens / step_s, "efficiency": fewest / step_s}
    return found


def seconds_per_step(options: argparse.Namespace, ranks: int) -> float:
    """Of NormLab on so many ranks, each with `options.sequences`."""
    import torch

    from contenders.turns import one_turn

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "turn.json"
        torch.multiprocessing.spawn(one_turn, (ranks, options, free_port(), file), nprocs=ranks)
        return json.loads(file.read_text())["seconds"]


def predict(asked: PlanRequest) -> list[Predicted]:
    """The plan's times for 8 to 4,096 GPUs: each with what it has on a node, and with the recipe's batch."""
    from training.engine.hardware import GPUS
    from training.plan.accounting import step_time
    from training.plan.scaling import Plan

    gpu, deepspeed = GPUS[asked.gpu], asked.deepspeed
    plan = Plan(asked.recipe, deepspeed, asked.asked, gpu, asked.mfu)
    of_a_gpu = deepspeed.train_batch_size // NODE_OF_GPUS
    accumulation = of_a_gpu // deepspeed.micro_batch
    tokens = of_a_gpu * asked.recipe.model.block_size
    found: list[Predicted] = []
    gpus = NODE_OF_GPUS
    while gpus <= MOST_GPUS:
        time = step_time(plan.memory, plan.flops, gpus * tokens, gpu, gpus, accumulation, asked.mfu)
        rate, of_recipe = tokens / time.whole, plan.row(gpus).tokens_per_s / gpus
        node = found[0] if found else None
        found.append(
            Predicted(
                gpus=gpus,
                step_s=time.whole,
                tokens_per_s=rate,
                efficiency=rate / node.tokens_per_s if node else 1.0,
                recipe_tokens_per_s=of_recipe,
                recipe_efficiency=of_recipe / node.recipe_tokens_per_s if node else 1.0,
            )
        )
        gpus *= 2
    return found


def print_tables(here: dict[int, dict[str, float]], predicted: list[Predicted], asked: PlanRequest) -> None:
    """What was measured here, and the plan beside what others publish."""
    if here:
        print("\nhere: NormLab, the same micro-batches for every rank")
        print(f"{'ranks':>6} {'s per step':>11} {'tokens/s':>10} {'efficiency':>11}")
    for count, of in here.items():
        print(f"{count:>6} {of['step_s']:>11.3f} {of['tokens_per_s']:>10,.0f} {of['efficiency']:>11.1%}")
    of_a_gpu = asked.deepspeed.train_batch_size // NODE_OF_GPUS
    print(
        f"\npredicted, not measured: {asked.recipe_name}, ZeRO-{asked.deepspeed.stage}, {asked.gpu}, "
        f"{asked.mfu:.0%} of the peak in the compute alone; {of_a_gpu} sequences per GPU and step, or "
        f"train_batch_size {asked.asked[0]} as the recipe has it; efficiency over {NODE_OF_GPUS} GPUs"
    )
    names = [f"[{number}]" for number, _ in enumerate(PUBLISHED, start=1)]
    print(
        f"{'GPUs':>6} {'s per step':>11} {'tokens/s/GPU':>13} {'efficiency':>11} {'recipe batch':>13} "
        f"{'efficiency':>11}" + "".join(f"{name:>8}" for name in names)
    )
    for row in predicted:
        others = [published.efficiency(row.gpus) for published in PUBLISHED]
        print(
            f"{row.gpus:>6} {row.step_s:>11.3f} {row.tokens_per_s:>13,.0f} {row.efficiency:>11.1%} "
            f"{row.recipe_tokens_per_s:>13,.0f} {row.recipe_efficiency:>11.1%}"
            + "".join(f"{'-' if other is None else f'{other:.1%}':>8}" for other in others)
        )
    for name, published in zip(names, PUBLISHED, strict=True):
        fewest = min(published.rates)
        rate = f"{published.rates[fewest]:,g} {published.unit} on {fewest}"
        print(f"{name} published: {published.what}; {rate}; {published.source}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
