"""Designs from a researcher's own file: the classes asked for with what they need, and nothing else of it.

A nanoGPT-derived script works as it is: its training code is not run.
"""

import ast
import builtins
import dis
import types
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import UserError

EXPORTED = "# Exported by NormLab; the modules beside it are NormLab's."
"""A line of the designs in an exported folder."""
_LOADS = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")


@dataclass(frozen=True)
class Extract:
    """The part of a file that some of its classes need."""

    path: Path
    body: list[ast.stmt]
    source: str
    """The same as text, comments included."""
    ours: frozenset[str]
    """Names that it uses and leaves to NormLab."""
    config_defaults: dict[str, Any]
    """The fields, with defaults, of a `GPTConfig` that the file defines."""
    exported: bool
    """Whether NormLab wrote the file, in an export, where its own modules lie beside it."""


def extract(path: Path, classes: Sequence[str], ours: Iterable[str]) -> Extract:
    """The imports, classes, functions and constants that `classes` of a file need, at its top level.

    Args:
        path: the file.
        classes: names that the file defines.
        ours: names that NormLab gives where the file uses them without defining them, or imports them from
            nanoGPT's `model`.

    Raises UserError, with the line, for a file that is not Python, or for a name that only the file's
    training code would set.
    """
    text = _read(path)
    tree = _parse(path, text)
    exported = EXPORTED in text.splitlines()
    given = frozenset(ours)
    bound: dict[str, list[ast.stmt]] = {}
    future, stars = [], []
    for statement in tree.body:
        if isinstance(statement, ast.ImportFrom) and statement.module == "__future__":
            future.append(statement)
        elif isinstance(statement, ast.ImportFrom) and statement.names[0].name == "*":
            stars.append(statement)
        else:
            for name in (*bound_names(statement), *_patches(statement)):
                bound.setdefault(name, []).append(statement)
    kept: dict[int, ast.stmt] = {}
    left_to_us: set[str] = set()
    unknown: dict[str, int] = {}
    asked = list(classes)
    seen = set(asked)
    line = 1
    while asked:
        name = asked.pop()
        if name in given and all(_imports_ours(s, exported) for s in bound.get(name, ())):
            left_to_us.add(name)
            continue
        if name not in bound and not hasattr(builtins, name) and not name.startswith("__"):
            unknown.setdefault(name, line)
        for statement in bound.get(name, ()):
            if id(statement) in kept:
                continue
            kept[id(statement)] = statement
            line = statement.lineno
            found = set(_global_names([*future, statement], str(path)))
            asked += sorted(found - seen)
            seen |= found
    if unknown and not stars:
        name, line = next(iter(unknown.items()))
        raise UserError(
            f"{path}: what begins at line {line} uses '{name}', which the file does not define at its top "
            "level: only imports, classes, functions and constants are taken from it, its other code is "
            "never run"
        )
    body = [*future, *(stars if unknown else ())]
    body += [s for s in tree.body if id(s) in kept]
    lines = text.splitlines()
    parts = ["\n".join(lines[_first_line(s) - 1 : s.end_lineno]) for s in body]
    source = "\n\n".join(parts) + "\n"
    return Extract(path, body, source, frozenset(left_to_us), _config_defaults(tree), exported)


def classes_in(path: Path) -> dict[str, list[str]]:
    """The classes that a file defines at its top level, each with its constructor's parameters after self.

    Raises UserError for a file that is not Python.
    """
    found = {}
    for statement in _parse(path, _read(path)).body:
        if isinstance(statement, ast.ClassDef):
            made = [s for s in statement.body if isinstance(s, ast.FunctionDef) and s.name == "__init__"]
            found[statement.name] = [a.arg for s in made for a in s.args.args[1:]]
    return found


def names_in(path: Path) -> set[str]:
    """What a file's top level defines, `*` for an import of everything. Raises as `classes_in` does."""
    return {name for s in _parse(path, _read(path)).body for name in bound_names(s)}


def module_literal(path: Path, name: str) -> Any:
    """The value of a name that a file sets to a literal at its top level, read and not run; None without.

    Raises UserError for anything else that sets or changes it, since only running the file would tell.
    """
    tree = _parse(path, _read(path))
    values = [
        s.value
        for s in tree.body
        if isinstance(s, ast.Assign | ast.AnnAssign) and name in bound_names(s) and s.value is not None
    ]
    changes = [getattr(node, "lineno", 0) for node in ast.walk(tree) if _sets(node, name)]
    try:
        if len(values) == len(changes) <= 1:
            return ast.literal_eval(values[0]) if values else None
    except ValueError:
        pass
    raise UserError(
        f"{path} line {changes[-1]}: {name} must be set once, to a literal such as "
        "{'learning_rate': 3e-4}: it is read, and the file is not run"
    )


def _sets(node: ast.AST, name: str) -> bool:
    """Whether a node sets a name, one of its items, or calls a method that changes it."""
    match node:
        case ast.Name(id=found, ctx=ast.Store()):
            return found == name
        case ast.Subscript(value=ast.Name(id=found), ctx=ast.Store() | ast.Del()):
            return found == name
        case ast.Call(func=ast.Attribute(value=ast.Name(id=found), attr=method)):
            return found == name and method in ("update", "setdefault", "pop", "popitem", "clear")
    return False


def in_words(error: BaseException) -> str:
    """An exception as a part of a sentence."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {in_words(error)}") from error


def _parse(path: Path, text: str) -> ast.Module:
    try:
        return ast.parse(text, str(path))
    except SyntaxError as error:
        raise UserError(f"{path} line {error.lineno} is not Python: {error.msg}") from error


def bound_names(statement: ast.stmt) -> Iterator[str]:
    """The names that a definition binds; none for what may be training code."""
    match statement:
        case ast.Import() | ast.ImportFrom():
            for alias in statement.names:
                yield alias.asname or alias.name.partition(".")[0]
        case ast.FunctionDef() | ast.ClassDef():
            yield statement.name
        case ast.Assign() | ast.AnnAssign() | ast.AugAssign():
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            for target in targets:
                names = (node for node in ast.walk(target) if isinstance(node, ast.Name))
                yield from (name.id for name in names if isinstance(name.ctx, ast.Store))
        case ast.If() | ast.Try():
            inside = [s for s in ast.walk(statement) if isinstance(s, ast.stmt) and s is not statement]
            parts = [*statement.body, *statement.orelse]
            if isinstance(statement, ast.Try):
                parts += [*statement.finalbody, *(s for h in statement.handlers for s in h.body)]
            whole = [s for s in parts if not isinstance(s, ast.Pass)]
            if inside and all(any(bound_names(part)) for part in whole) and not _is_main_guard(statement):
                for part in whole:
                    yield from bound_names(part)


def _is_main_guard(statement: ast.If | ast.Try) -> bool:
    return isinstance(statement, ast.If) and "__name__" in ast.unparse(statement.test)


def _imports_ours(statement: ast.stmt, exported: bool) -> bool:
    """Whether a statement imports from nanoGPT's model.py, which is NormLab here, or, as a design that
    was exported does, from a file of NormLab beside it."""
    if not isinstance(statement, ast.ImportFrom):
        return False
    return statement.module == "model" or (exported and is_of_export(statement))


def is_of_export(statement: ast.ImportFrom) -> bool:
    """Whether a statement of an exported design imports a module of NormLab's, and no part of the design."""
    modules = [statement.module] if statement.module else [alias.name for alias in statement.names]
    return statement.level == 1 and not any(module.startswith("design_") for module in modules)


def _global_names(statements: list[ast.stmt], filename: str) -> Iterator[str]:
    """The names that a statement looks up in its module, in whatever function it does."""
    codes = [compile(ast.Module(statements, []), filename, "exec")]
    while codes:
        code = codes.pop()
        instructions = list(dis.get_instructions(code))
        in_class = code.co_name != "<module>"
        local = {i.argval for i in instructions if in_class and i.opname == "STORE_NAME"}
        yield from (i.argval for i in instructions if i.opname in _LOADS and i.argval not in local)
        codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]


def _patches(statement: ast.stmt) -> Iterator[str]:
    """The classes and functions whose attribute a statement sets: `Block.forward = ...`."""
    for target in statement.targets if isinstance(statement, ast.Assign) else ():
        if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name):
            yield target.value.id


def _first_line(statement: ast.stmt) -> int:
    decorators = getattr(statement, "decorator_list", [])
    return min([statement.lineno, *(d.lineno for d in decorators)])


def _config_defaults(tree: ast.Module) -> dict[str, Any]:
    for statement in tree.body:
        if isinstance(statement, ast.ClassDef) and statement.name == "GPTConfig":
            fields = [s for s in statement.body if isinstance(s, ast.AnnAssign) and s.value is not None]
            return {ast.unparse(s.target): value for s in fields for value in _literal(s.value)}
    return {}


def _literal(node: ast.expr | None) -> list[Any]:
    try:
        return [] if node is None else [ast.literal_eval(node)]
    except ValueError:
        return []
