"""Measure what every design of the catalogue costs beside `vanilla`: step time, memory, FLOPs.

    python scripts/bench_designs.py --json FILE [--only NAME ...] [--uncompiled] [--n_layer 4] ...

A step is forward, backward and fused AdamW on bf16 weights, without DeepSpeed, with the blocks compiled as
train.py does it. Vanilla is measured again beside each design: both are in memory, and take turns in an order
that alternates. A step's time is CUDA events' on a GPU, and the CPU time of one thread on a CPU, which others
on the machine change little. FILE is written after each design; what is in it is not measured again.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from model.checkout import refuse_other_checkout
from model.errors import UserError, did_you_mean, print_error

refuse_other_checkout(__file__)

SHAPES = {
    "cpu": {"n_layer": 4, "n_head": 4, "n_embd": 256, "block_size": 256, "micro_batch": 4,
            "vocab_size": 1024},
    "cuda": {"n_layer": 12, "n_head": 12, "n_embd": 768, "block_size": 1024, "micro_batch": 24,
             "vocab_size": 50304},
}  # fmt: skip
"""What is measured where nothing is said. A CPU's head is small, so that the blocks do not hide behind it."""
TURNS = {"rounds": 7, "steps": 2}
COLUMNS = ("design", "FLOPs", "parameters", "step time", "time / FLOPs", "memory", "compile s")
MOST = 1.15
"""Step time over FLOPs' share from which a design's row is marked."""


def main(argv: list[str]) -> int:
    """Measure what is missing in the file and print the table; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", help="a file for the figures, which is gone on with where it is there")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these designs, and not all")
    parser.add_argument("--device", choices=list(SHAPES), help="default: cuda where there is one")
    parser.add_argument("--uncompiled", action="store_true", help="leave the blocks uncompiled")
    for name, of_cpu in SHAPES["cpu"].items():
        parser.add_argument(f"--{name}", type=int, help=f"default: {of_cpu}, on a GPU {SHAPES['cuda'][name]}")
    for name, default in TURNS.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"of a design, default: {default}")
    options = parser.parse_args(argv)
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler says nothing; read as torch is imported

    import torch
    from design_turns import measure, setting

    from model import VARIANTS

    try:
        names = options.only or [name for name in VARIANTS if name != "vanilla"]
        for name in names:
            if name not in VARIANTS:
                raise UserError(
                    f"--only names {name!r}{did_you_mean(name, VARIANTS)}: no design is called so"
                )
        device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        shape = {name: getattr(options, name) or of for name, of in SHAPES[device.type].items()}
        compiled = not options.uncompiled
        of_all = setting(device, shape, compiled, {name: getattr(options, name) for name in TURNS})
        rows = read(options.json, of_all)
        # Compiled anew in each process, but what designs have in common once.
        with tempfile.TemporaryDirectory() as os.environ["TORCHINDUCTOR_CACHE_DIR"]:
            for name in names:
                if name in rows:
                    continue
                rows[name] = measure(name, device, shape, compiled, options.rounds, options.steps)
                print(row_of(name, rows[name]), *rows[name]["said"], sep="\n    ", flush=True)
                write(options.json, of_all, rows)
    except UserError as error:
        return print_error(error)
    print("\n" + table(of_all, {name: rows[name] for name in names}))
    return 0


def read(file: str | None, setting: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The rows of a file that is gone on with. Raises UserError where they were measured otherwise."""
    if not file or not Path(file).exists():
        return {}
    import json

    try:
        found = json.loads(Path(file).read_text())
        there, rows = found["setting"], found["designs"]
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"--json {file} is no file of this script: {error!r}; name another") from error
    for key in setting:
        if there.get(key) != setting[key]:
            raise UserError(
                f"--json {file} was measured with {key} {there.get(key)}, not {setting[key]}: name another"
            )
    return rows


def write(file: str | None, setting: dict[str, Any], rows: dict[str, dict[str, Any]]) -> None:
    from model.files import write_json

    if file:
        write_json(Path(file), {"setting": setting, "designs": rows})


def table(setting: dict[str, Any], rows: dict[str, dict[str, Any]]) -> str:
    """The setting in one line, and the rows as Markdown, the dearest for its FLOPs first."""
    facts = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in setting.items())
    head = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"
    dearest = sorted(rows, key=lambda name: -over_share(rows[name]))
    return "\n".join([facts, "", head, *(row_of(name, rows[name]) for name in dearest)])


def over_share(row: dict[str, Any]) -> float:
    """Step time over FLOPs, both over vanilla's."""
    return row["time_ratio"] / row["flops_ratio"]


def row_of(name: str, row: dict[str, Any]) -> str:
    """A line of the table: ratios over vanilla's, with a mark where time is more than its FLOPs' share."""
    mark = " **>**" if over_share(row) > MOST else ""
    cells = [f"{row[f'{key}_ratio']:.2f}" for key in ("flops", "parameters", "time")]
    cells += [f"{over_share(row):.2f}{mark}", f"{row['memory_ratio']:.2f}", f"{row['compile_s']:.0f}"]
    return f"| {name} | {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
