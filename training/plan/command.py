"""The command line of a plan: train.py's, and how many GPUs of which kind."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from model.errors import UserError

from ..config.batch_sizes import IndivisibleBatch
from ..config.command_line import CommandLine, Option
from ..config.commands import FILES, SHORTHANDS, Request, read_request
from ..config.deepspeed import DeepSpeedConfig, read_deepspeed_config
from ..config.recipe import SECTIONS
from ..engine.hardware import GPUS

if TYPE_CHECKING:
    from ..config import Recipe

MFU = 0.4
"""Of the compute alone. An assumption: nothing here was measured on a GPU."""
MOST_GPUS = 4096
PLAN = CommandLine(
    prog="scripts/plan.py",
    usage="python scripts/plan.py --config RECIPE.yaml --deepspeed_config DS.json --gpus 8xH100 [--mfu 0.4]\n"
    "                 [--measure [--limit_gib N]] [--json FILE] [--section.key VALUE ...]\n"
    "                 [--ds.path.to.key VALUE ...]",
    description="What a run needs, before a GPU is rented: memory per rank, communication, time, GPU hours.",
    sections=SECTIONS,
    shorthands=SHORTHANDS,
    options=FILES
    | {
        "gpus": Option(f"a number, an x and one of {', '.join(GPUS)}", "8xH100"),
        "mfu": Option(f"model FLOPs utilisation of the compute alone (default: {MFU})", "SHARE"),
        "measure": Option(
            "make steps on the device at hand, and find the micro-batch that fits and the fastest; --gpus is "
            "how many ranks the run will have (default: one)",
            None,
        ),
        "limit_gib": Option(
            "of --measure: what the process may have, in GiB (default: 90 % of what is there)", "N"
        ),
        "json": Option("a file for the numbers", "FILE"),
    },
    takes_deepspeed=True,
)


@dataclass(frozen=True)
class PlanRequest:
    """What is to be planned.

    Attributes:
        recipe: model and length
        recipe_name: of the recipe's file
        deepspeed: how it is trained, sized for `ranks`
        asked: `train_batch_size` and micro-batch before they were made to divide
        note: a sentence where one of them follows from another, or had to be changed to divide
        ranks: how many GPUs
        gpu: the name of their kind; empty where nothing but a measurement is asked for
        mfu: model FLOPs utilisation of the compute alone
        json_file: where the numbers go, if anywhere
        measure: whether steps are made here
        limit: of --measure, bytes that a process may have; None for most of what is there
    """

    recipe: "Recipe"
    recipe_name: str
    deepspeed: DeepSpeedConfig
    asked: tuple[int, int]
    note: str | None
    ranks: int
    gpu: str
    mfu: float
    json_file: str | None
    measure: bool
    limit: int | None


def read_plan(argv: list[str]) -> PlanRequest:
    """The command line, checked. Neither torch nor DeepSpeed is imported.

    Raises UserError or OSError with one sentence, and SystemExit after `--help`.
    """
    given = PLAN.read(argv).options
    measure = "measure" in given
    if "gpus" not in given and not measure:
        raise UserError(
            f"--gpus is missing: a number, an x and one of {', '.join(GPUS)}, such as 8xH100; or "
            "--measure, to make steps on the device at hand"
        )
    if "limit_gib" in given and not measure:
        raise UserError("--limit_gib is for --measure, which is not given: leave it out, or give both")
    ranks, gpu = _parse_gpus(given["gpus"]) if "gpus" in given else (1, "")
    mfu = _parse_mfu(given.get("mfu", str(MFU)))
    limit = _parse_limit(given["limit_gib"]) if "limit_gib" in given else None
    request = read_request(PLAN, argv)
    deepspeed, asked, note = _sized_for(request, ranks)
    # fmt: off
    return PlanRequest(
        request.recipe(), request.recipe_file.name, deepspeed, asked, note, ranks, gpu, mfu,
        given.get("json"), measure, limit,
    )
    # fmt: on


def _parse_gpus(text: str) -> tuple[int, str]:
    """`8xH100` -> (8, "H100"). Raises UserError with what is allowed."""
    match = re.fullmatch(r"(\d+)x(.+)", text)
    if not match or match[2] not in GPUS or not 1 <= int(match[1]) <= MOST_GPUS:
        raise UserError(
            f"--gpus is '{text}', but it must be a number from 1 to {MOST_GPUS}, an x and one of "
            f"{', '.join(GPUS)}: 8xH100"
        )
    return int(match[1]), match[2]


def _parse_mfu(text: str) -> float:
    try:
        mfu = float(text)
    except ValueError:
        mfu = 0.0
    if not 0 < mfu <= 1:
        raise UserError(f"--mfu is '{text}', but it must be above 0 and at most 1")
    return mfu


def _parse_limit(text: str) -> int:
    """`12.5` -> bytes. Raises UserError with what is allowed."""
    try:
        gib = float(text)
    except ValueError:
        gib = 0.0
    if not 0 < gib < float("inf"):
        raise UserError(f"--limit_gib is '{text}', but it must be a number above 0")
    return int(gib * 2**30)


def _sized_for(request: Request, ranks: int) -> tuple[DeepSpeedConfig, tuple[int, int], str | None]:
    """The engine for `ranks`, what its batch sizes were, and a sentence if one follows or had to change."""
    file, overrides = request.deepspeed_file, request.deepspeed_overrides
    try:
        deepspeed = read_deepspeed_config(file, overrides, ranks)
        note = " ".join(deepspeed.notes) or None
        return deepspeed, (deepspeed.train_batch_size, deepspeed.micro_batch), note
    except IndivisibleBatch as error:
        refused = error
    asked = refused.sizes["train_batch_size"]
    batch = -(-asked // ranks) * ranks
    of_a_rank = batch // ranks
    largest = refused.sizes.get("train_micro_batch_size_per_gpu", of_a_rank)
    micro = next(m for m in range(min(largest, of_a_rank), 0, -1) if of_a_rank % m == 0)
    sizes = {
        "train_batch_size": str(batch),
        "train_micro_batch_size_per_gpu": str(micro),
        "gradient_accumulation_steps": str(of_a_rank // micro),
    }
    note = (
        f"train.py would refuse this: {refused}. The plan is for --ds.train_batch_size {batch} "
        f"--ds.train_micro_batch_size_per_gpu {micro}"
    )
    return read_deepspeed_config(file, {**overrides, **sizes}, ranks), (asked, largest), note
