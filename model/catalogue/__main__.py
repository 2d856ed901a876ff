"""The catalogue of designs: `python -m model.catalogue [NAME | --filter TEXT]`."""

import argparse
import inspect
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence

from ..config import GPTConfig
from ..errors import UserError, did_you_mean, print_error
from ..plug_points import PlugPoint
from ..redaction import redact_output
from . import VARIANTS, Variant, design_name

PLUG_POINTS: dict[PlugPoint, int] = {"norm": 2, "block": 1, "topology": 2}
"""How many arguments each is given: (ndim, bias), (config), (config, blocks); what follows is an option."""


def main(arguments: Sequence[str]) -> int:
    """Print the table, or one variant in full; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m model.catalogue",
        description="The named designs: as a table, or one of them in full, with formula and options.",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="the variant to show in full")
    parser.add_argument(
        "--filter",
        metavar="TEXT",
        help="only variants whose entry holds this text; norm, block and topology are those that set it",
    )
    options = parser.parse_args(arguments)
    width = max(100, shutil.get_terminal_size((160, 0)).columns)
    try:
        if options.name is not None and options.filter is not None:
            raise UserError("a NAME shows one variant in full, --filter some of the table: give one of them")
        if options.name is not None:
            print(entry(options.name))
        else:
            found = VARIANTS if options.filter is None else filtered(VARIANTS, options.filter)
            print(table(found, width), end="")
    except UserError as error:
        return print_error(error)
    return 0


def filtered(variants: Mapping[str, Variant], text: str) -> dict[str, Variant]:
    """The variants that set a plug point, or whose entries hold a text in any case. UserError for none."""
    standard = vars(Variant("", "", ""))
    found = {}
    for name, variant in variants.items():
        own = vars(variant)
        if text in PLUG_POINTS:
            matches = any(own[key] != standard[key] for key in (text, f"{text}_options"))
        else:
            matches = text.lower() in " ".join(_words(name, variant)).lower()
        if matches:
            found[name] = variant
    if not found:
        raise UserError(f"no variant's entry holds '{text}'{did_you_mean(text, variants, 0.5)}")
    return found


def entry(name: str) -> str:
    """A variant in full, with each of its classes: formula, arguments, options and their defaults.

    Raises UserError for a name that there is not.
    """
    if name not in VARIANTS:
        known = ", ".join(VARIANTS)
        raise UserError(f"there is no variant '{name}'{did_you_mean(name, VARIANTS, 0.5)}; known are {known}")
    variant = VARIANTS[name]
    # Here, so that the table and a refusal do not wait for torch.
    from ..designs import REGISTERED
    from ..options import options_of

    lines = [f"{name}: {design_name(variant)}", ""]
    for title in ("source", "cost", "caveats", "evidence"):
        if text := getattr(variant, title):
            title = "cost beside vanilla" if title == "cost" else title
            lines += textwrap.wrap(f"{title}: {text}", 110, subsequent_indent="    ")
    lines += ["", f"python -m model.preflight --model.variant {name}"]
    settings = {key: value for key, value in variant.design.items() if value != getattr(GPTConfig, key, {})}
    lines += [f"sets {', '.join(f'model.{key} = {value}' for key, value in settings.items()) or 'nothing'}"]
    for plug, positional in PLUG_POINTS.items():
        design = REGISTERED[plug][getattr(variant, plug)]
        given = getattr(variant, f"{plug}_options")
        place = f"{design.__module__.replace('.', '/')}.py"
        lines += ["", f"{plug} {getattr(variant, plug)}: {design.__name__} in {place}"]
        lines += textwrap.indent(inspect.getdoc(design) or "", "    ").splitlines()
        for option, (_, default) in options_of(design, positional).items():
            value = f"{given[option]} here, else {default}" if option in given else f"{default}"
            lines.append(f"  --model.{plug}_options.{option}: {value}")
    return "\n".join(lines)


def table(variants: Mapping[str, Variant], width: int) -> str:
    """Name, design, source, cost and caveats of each variant, and its evidence below, `width` characters."""
    titles = ("variant", "norm+block+topology", "source", "cost beside vanilla", "caveats")
    first = max(len(titles[0]), *map(len, variants)) + 2
    designs = [design_name(variant) for variant in variants.values() if not variant.topology_options]
    second = max(map(len, (titles[1], *designs))) + 2
    rest = (width - first - second) // 3
    widths = (first, second, rest, rest, rest)
    rows = [tuple(_words(name, variant))[:-1] for name, variant in variants.items()]
    evidence = ["", *(v.evidence for v in variants.values())]
    lines = []
    for row, below in zip((titles, *rows), evidence, strict=True):
        cells = [textwrap.wrap(text, size - 2) or [""] for text, size in zip(row, widths, strict=True)]
        for i in range(max(map(len, cells))):
            parts = [cell[i] if i < len(cell) else "" for cell in cells]
            joined = "".join(part.ljust(size) for part, size in zip(parts, widths, strict=True))
            lines.append(joined.rstrip())
        indent = " " * first
        lines += textwrap.wrap(below, width, initial_indent=indent, subsequent_indent=indent)
        lines.append("")
    return "\n".join(lines)


def _words(name: str, variant: Variant) -> Iterator[str]:
    yield from (name, design_name(variant))
    yield from (variant.source, variant.cost, variant.caveats, variant.evidence)


if __name__ == "__main__":
    redact_output()
    sys.exit(main(sys.argv[1:]))
