"""A model's code as a folder of its own: NormLab's files, and the designs that come from a user's file."""

import ast
import importlib
import importlib.metadata
import importlib.util
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from .config import GPTConfig
from .designs import REGISTERED
from .errors import UserError
from .plug_points import NAMES_OF_OURS, PLUG_POINTS, PlugPoint, design_files, split_name
from .plugin import EXPORTED, Extract, bound_names, classes_in, extract
from .siblings import parts_of, renamed

_PACKAGE = __name__.partition(".")[0]
_HOMES = {"CausalSelfAttention": "layers", "MLP": "layers", "GPTConfig": "config"}
_ENTRY = "modeling_normlab.py"


def write_code(config: GPTConfig, folder: Path) -> GPTConfig:
    """Write the Python files that a model needs, side by side.

    They are NormLab's as they are; `design_norm.py`, `design_block.py` and `design_topology.py` for designs
    from elsewhere; and `chosen_norm.py`, the norm that stands for their `LayerNorm`.

    Returns the config with the designs named as they are found there: `.design_block:Block`.

    Raises UserError for a design that needs more than its own file, torch and installed packages.
    """
    from transformers.dynamic_module_utils import get_relative_import_files

    here = Path(__file__).parent
    ours = {here / _ENTRY, *map(Path, get_relative_import_files(here / _ENTRY))}
    modules = {file.stem for file in ours}
    names: dict[str, str] = {}
    sources: dict[str, str] = {}
    for plug in PLUG_POINTS:
        names[plug] = _place(plug, config, modules)
        if names[plug].startswith(".design_"):
            sources |= _sources(plug, config, modules)
    chosen = _chosen_norm(names["norm"], config)
    if any("from .chosen_norm import" in source for source in sources.values()):
        sources["chosen_norm.py"] = chosen
    folder.mkdir(parents=True, exist_ok=True)
    for file in ours:
        shutil.copyfile(file, folder / file.name)
    for name, source in sources.items():
        (folder / name).write_text(source, encoding="utf-8")
    if sources:
        lines = ["", "# This model's designs: transformers takes along the files that are imported here."]
        lines += [f"from .{module} import {name} as _{module}" for module, name in _first_names(sources)]
        with (folder / _ENTRY).open("a", encoding="utf-8") as entry:
            entry.write("\n".join(lines) + "\n")
    return replace(config, **names)  # type: ignore[arg-type]


def _first_names(sources: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Each module with a name that it defines."""
    for file, source in sources.items():
        names = [name for statement in ast.parse(source).body for name in bound_names(statement)]
        yield file.removesuffix(".py"), names[-1]


def _place(plug: PlugPoint, config: GPTConfig, ours: set[str]) -> str:
    """The name of a design in the folder. Raises UserError for one of ours that does not go there."""
    name = getattr(config, plug)
    place = split_name(name)
    if name in REGISTERED[plug] or place is None:
        return name
    where, class_name = place
    package, _, module = where.partition(".")
    if where.endswith(".py"):
        return f".design_{plug}:{class_name}"
    if package in (_PACKAGE, ""):
        if module not in ours:
            raise UserError(f"model.{plug} '{name}' is not exported: its module is no part of a model")
        return f".{module}:{class_name}"
    return name if package == "torch" else f".design_{plug}:{class_name}"


def _sources(plug: PlugPoint, config: GPTConfig, ours: set[str]) -> dict[str, str]:
    """A design's part of its file, and of those beside it that it imports from, by the files' new names.

    What they leave to NormLab is imported.
    """
    name = getattr(config, plug)
    where, class_name = split_name(name) or ("", name)
    files = design_files(config)
    if plug in files:
        path = files[plug]
    else:
        spec = importlib.util.find_spec(where)
        if spec is None or not str(spec.origin).endswith(".py"):
            raise UserError(f"model.{plug} '{name}' is not exported: its module is no Python file")
        path = Path(str(spec.origin))
    classes = classes_in(path)
    if class_name not in classes:
        raise UserError(f"model.{plug} '{name}' is not exported: {path} does not define the class itself")
    # The config's class goes along because its defaults reach the block.
    asked = [class_name] + [c for c in ("GPTConfig",) if plug == "block" and c in classes]
    parts = parts_of(path, asked, NAMES_OF_OURS) if plug in files else [extract(path, asked, ())]
    modules = {part.path: f".design_{plug}_{part.path.stem}" for part in parts[1:]}
    modules[path] = f".design_{plug}"
    sources = {}
    for part in parts:
        homes: dict[str, list[str]] = {}
        for used in sorted(part.ours):
            home = _HOMES.get(used, "norms" if plug == "norm" else "chosen_norm")
            homes.setdefault(home, []).append(used)
        header = [f"from .{home} import {', '.join(used)}" for home, used in sorted(homes.items())]
        try:
            source = _self_contained(part, modules, where.partition(".")[0], ours)
        except UserError as error:
            raise UserError(f"model.{plug} '{name}' is not exported: {part.path} {error}") from error
        sources[f"{modules[part.path][1:]}.py"] = _with_header(source, [EXPORTED, *header])
    return sources


def _with_header(source: str, header: list[str]) -> str:
    """The source with lines after its `from __future__`, which Python wants first."""
    future = [
        statement.end_lineno or 0
        for statement in ast.parse(source).body
        if isinstance(statement, ast.ImportFrom) and statement.module == "__future__"
    ]
    lines = source.splitlines()
    start = max(future, default=0)
    return "\n".join(lines[:start] + header + lines[start:]) + "\n"


def _self_contained(part: Extract, modules: Mapping[Path, str], package: str, ours: set[str]) -> str:
    """The source with imports from NormLab, of modules in `ours`, made relative, and those of files beside by
    the `modules` that they become.

    Raises UserError for an import that another machine could not do, of a local file, unless it is tried.
    """
    owners = importlib.metadata.packages_distributions()
    installed = {name for name, of_name in owners.items() if of_name != ["normlab"]} | sys.stdlib_module_names
    text = part.source.encode()
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    tree = ast.parse(part.source)
    imports = [n for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom))]
    tried = [part for n in ast.walk(tree) if isinstance(n, ast.Try) and n.handlers for part in n.body]
    optional = {id(node) for part in tried for node in ast.walk(part)}
    for node in sorted(imports, key=lambda node: (node.lineno, node.col_offset), reverse=True):
        changed = renamed(node, part, modules)
        if changed is None and isinstance(node, ast.ImportFrom) and not node.level and _is_ours(node.module):
            changed = _relative(node, ours)
        if changed is not None:
            begin = starts[node.lineno - 1] + node.col_offset
            end = starts[(node.end_lineno or 0) - 1] + (node.end_col_offset or 0)
            text = text[:begin] + changed.encode() + text[end:]
            continue
        relative = isinstance(node, ast.ImportFrom) and node.level > 0
        if relative and part.exported:
            continue
        asked = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
        tops = {module.partition(".")[0] for module in asked}
        if relative or _PACKAGE in tops or package in tops or not (tops <= installed or id(node) in optional):
            raise UserError(f"is not self-contained: '{ast.unparse(node)}' finds nothing on another machine")
    return text.decode()


def _is_ours(module: str | None) -> bool:
    return (module or "").partition(".")[0] == _PACKAGE


def _relative(node: ast.ImportFrom, ours: set[str]) -> str:
    """`from model.layers import MLP` as `from .layers import MLP`; also names from `model` itself."""
    module = (node.module or "").partition(".")[2]
    if module in ours:
        return ast.unparse(ast.ImportFrom(module, node.names, 1))
    statements = []
    for alias in node.names:
        home = getattr(getattr(importlib.import_module(_PACKAGE), alias.name, None), "__module__", "")
        home = home.partition(".")[2]
        if module or home not in ours:
            raise UserError(f"is not self-contained: '{ast.unparse(node)}' finds nothing on another machine")
        statements.append(ast.unparse(ast.ImportFrom(home, [alias], 1)))
    return "; ".join(statements)


def _chosen_norm(name: str, config: GPTConfig) -> str:
    """The file of the norm that designs from a user's file call LayerNorm, with the options it has."""
    imports = ["from .arguments import from_config"] if name.startswith(".design_") else []
    if name in REGISTERED["norm"]:
        imports.append("from .designs import REGISTERED")
        norm = f'REGISTERED["norm"]["{name}"]'
    else:
        module, _, norm = name.rpartition(":")
        imports.append(f"from {module} import {norm}")
        if module.startswith(".design_"):
            norm = f"from_config({norm}, 2)"
    if config.norm_options:
        imports.append("from .options import with_options")
        norm = f'with_options("model.norm_options", {norm}, 2, {config.norm_options!r})'
    body = [] if norm == "LayerNorm" else [f"LayerNorm = {norm}"]
    title = '"""The norm of this model, under the name that its designs use."""'
    return "\n\n".join([title, "\n".join(imports), *body]) + "\n"
