"""The files beside a candidate file that it imports from, found, and loaded with it."""

import ast
import contextlib
import copy
import hashlib
import io
import os
import sys
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from .errors import UserError
from .plugin import Extract, extract, in_words, is_of_export, names_in

Import = ast.Import | ast.ImportFrom
_MODEL = Path(__file__).parent
_NEVER_BESIDE = sys.stdlib_module_names | {"torch", _MODEL.name}
"""Whatever lies beside a file: `from model import MLP` is NormLab's, as nanoGPT's scripts mean it."""
_WHOLE = "*"
_PREFIX = "normlab_plugin_"
_said: set[str] = set()


def parts_of(path: Path, classes: Sequence[str], ours: Iterable[str]) -> list[Extract]:
    """What classes of a file need, of it and of the files beside it that it imports from: its own part first.

    `from .helper import X`, `from helper import X` and `import helper` take `helper.py` beside the file where
    there is one. As of the file itself, only definitions are taken of it.

    Raises UserError as `extract` does, and for a relative import that finds no file.
    """
    given = tuple(ours)
    asked: dict[Path, list[str]] = {path: list(classes)}
    parts: dict[Path, Extract] = {}
    todo = [path]
    while todo:
        file = todo.pop()
        part = parts[file] = extract(file, asked[file], given)
        for node in _imports(part):
            for beside, names in _beside(node, part).items():
                known = asked.setdefault(beside, [])
                wanted = _defined(node, part, beside, names)
                if more := [name for name in wanted if name not in known]:
                    known += more
                    todo.append(beside)
    return [parts[path], *(parts[file] for file in sorted(parts) if file != path)]


def load(parts: Sequence[Extract], names: Mapping[str, type]) -> types.ModuleType:
    """Run the parts as modules in which `names` stand for what they leave to NormLab; returns the first.

    What they print is said once, on rank 0.

    Raises UserError, with the file and its line, where one fails.
    """
    given = {part.path: {name: names[name] for name in part.ours} for part in parts}
    identity = [
        (str(part.path), part.source, sorted((name, id(kind)) for name, kind in given[part.path].items()))
        for part in parts
    ]
    digest = hashlib.sha256(repr(identity).encode()).hexdigest()[:16]
    modules = {part.path: f"{_PREFIX}{part.path.stem}_{digest}" for part in parts}
    first = modules[parts[0].path]
    if first in sys.modules:
        return sys.modules[first]
    by_path = {part.path: part for part in parts}

    def run(part: Extract) -> None:
        module = types.ModuleType(modules[part.path])
        module.__file__ = str(part.path)
        # An exported design imports from NormLab's files beside it; any other has no package to import from.
        module.__package__ = __package__ if part.exported else ""
        vars(module).update(given[part.path])
        sys.modules[module.__name__] = module
        for node in _imports(part):
            for beside in _beside(node, part):
                if modules[beside] not in sys.modules:
                    run(by_path[beside])
        body = [_Renamed(part, modules).visit(copy.deepcopy(statement)) for statement in part.body]
        tree = ast.fix_missing_locations(ast.Module(_flat(body), []))
        try:
            exec(compile(tree, str(part.path), "exec"), vars(module))
        except Exception as error:
            raise UserError(f"{part.path}{_line_of(error, part.path)} fails: {_why(error)}") from error

    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            run(parts[0])
    except BaseException:
        for name in modules.values():
            sys.modules.pop(name, None)
        raise
    text = " ".join(printed.getvalue().split())
    if text and text not in _said and (os.environ.get("RANK") or "0") == "0":
        _said.add(text)
        print(f"{parts[0].path} prints as it is loaded: {text[:200]}", file=sys.stderr)
    return sys.modules[first]


@contextlib.contextmanager
def loaded_afresh() -> Iterator[None]:
    """What is loaded inside begins anew, without what earlier calls have left in its modules."""
    before = {name: module for name, module in sys.modules.items() if name.startswith(_PREFIX)}
    for name in before:
        del sys.modules[name]
    try:
        yield
    finally:
        sys.modules.update(before)


def renamed(node: Import, part: Extract, modules: Mapping[Path, str]) -> str | None:
    """An import of files beside, under other names of their modules, as source; None where it has none.

    Args:
        node: the statement.
        part: where it stands.
        modules: file -> the module that stands for it: `name`, or `.name` in a package.
    """
    found = _beside(node, part)
    if not found:
        return None
    if isinstance(node, ast.ImportFrom) and node.module:
        (file,) = found
        names = ", ".join(ast.unparse(alias) for alias in node.names)
        return f"from {modules[file]} import {names}"
    lines = []
    for alias in node.names:
        file = part.path.parent / f"{alias.name}.py"
        module = modules.get(file, "") if file in found else ""
        if not module:
            lines.append(f"import {ast.unparse(alias)}")
        elif module.startswith("."):
            lines.append(f"from . import {module[1:]} as {alias.asname or alias.name}")
        else:
            lines.append(f"import {module} as {alias.asname or alias.name}")
    return "; ".join(lines)


class _Renamed(ast.NodeTransformer):
    """Imports of files beside become imports of the modules that stand for them."""

    def __init__(self, part: Extract, modules: Mapping[Path, str]) -> None:
        self.part, self.modules = part, modules

    def _visit(self, node: Import) -> list[ast.stmt]:
        text = renamed(node, self.part, self.modules)
        if text is None:
            return [node]
        statements = ast.parse(text).body
        for statement in statements:
            for inner in ast.walk(statement):
                ast.copy_location(inner, node)
        return statements

    visit_Import = visit_ImportFrom = _visit


def _flat(statements: Iterable[ast.stmt | list[ast.stmt]]) -> list[ast.stmt]:
    return [s for each in statements for s in (each if isinstance(each, list) else [each])]


def _imports(part: Extract) -> Iterator[Import]:
    for node in ast.walk(ast.Module(part.body, [])):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node


def _beside(node: Import, part: Extract) -> dict[Path, list[str]]:
    """The files beside that a statement imports, with the names that it takes of each; `*` is all of them.

    Raises UserError for a relative import that finds none, unless it is tried.
    """
    folder = part.path.parent
    if isinstance(node, ast.Import):
        found = {folder / f"{alias.name}.py": [_WHOLE] for alias in node.names if _is_free(alias.name)}
        return {file: names for file, names in found.items() if file.is_file()}
    if node.level == 0:
        file = folder / f"{node.module}.py"
        return {file: [a.name for a in node.names]} if _is_free(node.module or "") and file.is_file() else {}
    if part.exported and is_of_export(node):
        return {}
    modules = [node.module] if node.module else [alias.name for alias in node.names]
    names = [alias.name for alias in node.names] if node.module else [_WHOLE]
    files = {folder / f"{module}.py": names for module in modules}
    missing = [file.name for file in files if node.level > 1 or not file.is_file()]
    if not missing:
        return files
    if _is_tried(node, part):
        return {}
    own = f"; NormLab's own is model.{node.module}" if (_MODEL / missing[0]).is_file() else ""
    raise UserError(
        f"{part.path} line {node.lineno} says '{ast.unparse(node)}', but no {missing[0]} lies beside it: a "
        f"design is one file and the files beside it{own}"
    )


def _is_free(module: str) -> bool:
    return module not in _NEVER_BESIDE and "." not in module


def _is_tried(node: Import, part: Extract) -> bool:
    tries = (n for n in ast.walk(ast.Module(part.body, [])) if isinstance(n, ast.Try) and n.handlers)
    inside = {getattr(n, "lineno", 0) for each in tries for s in each.body for n in ast.walk(s)}
    return node.lineno in inside


def _defined(node: Import, part: Extract, file: Path, names: Sequence[str]) -> list[str]:
    """What is taken of a file beside, all of it for `*`. Raises UserError for a name that it lacks."""
    defined = names_in(file)
    if _WHOLE in names:
        return sorted(defined - {_WHOLE})
    for name in names:
        if name not in defined and _WHOLE not in defined:
            raise UserError(
                f"{part.path} line {node.lineno} imports {name} from {file.name}, which does not define it"
            )
    return list(names)


def _why(error: Exception) -> str:
    """What failed, in words; of a module that is not there, what a design may be."""
    found = in_words(error)
    if isinstance(error, ModuleNotFoundError):
        found += ": a design is one file and the files beside it"
    return found


def _line_of(error: BaseException, path: Path) -> str:
    """The last line of the file that an exception passed, as ` line 12`."""
    lines = []
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    return f" line {lines[-1]}" if lines else ""
