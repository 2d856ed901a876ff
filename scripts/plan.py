"""What a run needs, before a GPU is rented: memory per rank, communication, time, GPU hours.

    python scripts/plan.py --config recipes/gpt2_medium_fineweb.yaml \\
        --deepspeed_config ds_configs/zero1_bf16.json --gpus 8xH100 [--mfu 0.4] [--json FILE]

With --measure it makes steps on the device at hand, one GPU or the CPU, to find the micro-batch that fits and
the fastest. It takes any --section.key or --ds.key that train.py takes.
"""

import sys
from pathlib import Path
from typing import Any

from model.checkout import refuse_other_checkout

refuse_other_checkout(__file__)

from model.errors import UserError, print_error
from model.files import write_json
from model.redaction import redact_output
from training.engine.hardware import GPUS, NODE
from training.plan.command import read_plan


def main(argv: list[str]) -> int:
    """Print the plan; returns the exit status."""
    try:
        asked = read_plan(argv)
        facts: dict[str, Any] = {}
        if asked.note:
            print(asked.note)
        # Imported here: what is refused above is refused before torch is imported.
        if asked.gpu:
            from training.plan.report import describe
            from training.plan.scaling import Plan

            plan = Plan(asked.recipe, asked.deepspeed, asked.asked, GPUS[asked.gpu], asked.mfu)
            text, facts = describe(plan, asked.gpu, asked.ranks, asked.recipe_name)
            print(text)
            print(
                f"Assumed, not measured: the MFU; {NODE} GPUs per node; nominal links at 70 %. See "
                "docs/plan.md."
            )
        if asked.measure:
            from training.plan.measure import measure

            text, facts["measured"] = measure(asked, lambda line: print(line, flush=True))
            print(text)
    except (UserError, OSError) as error:
        return print_error(error)
    if asked.json_file:
        write_json(Path(asked.json_file), facts)
    return 0


if __name__ == "__main__":
    redact_output()
    sys.exit(main(sys.argv[1:]))
