"""The house rules of CONTRIBUTING.md that a program can check, read from the source files."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DIRECTORIES = ["model", "data", "training", "eval"]
"""From the bottom up: each may import those before it."""
PRODUCT = [path for name in DIRECTORIES for path in sorted((ROOT / name).rglob("*.py"))]
COMMANDS = [ROOT / "train.py", *sorted((ROOT / "scripts").rglob("*.py"))]
TESTS = sorted((ROOT / "tests").rglob("*.py"))
TEXTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), *sorted(ROOT.glob("*/*.yaml"))]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def functions(path: Path) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree_of(path)) if isinstance(node, ast.FunctionDef))


def test_names_of_tests_have_at_most_70_characters() -> None:
    names = [node.name for path in TESTS for node in functions(path) if node.name.startswith("test_")]
    assert len(names) > 500
    long = [name for name in names if len(name) > 70]
    assert not long, "\n".join(long)


def test_files_have_at_most_300_lines() -> None:
    lines = {name_of(path): path.read_text().count("\n") for path in PRODUCT + COMMANDS + TESTS}
    long = [f"{name}: {count}" for name, count in lines.items() if count > 300]
    assert not long, "\n".join(long)


def test_directories_have_at_most_14_files() -> None:
    """`model/` is excepted, whose files an export copies side by side, and so are the tests."""
    files: dict[str, int] = {}
    for path in PRODUCT + COMMANDS:
        files[name_of(path.parent)] = files.get(name_of(path.parent), 0) + 1
    assert {name: count for name, count in files.items() if count > 14 and name != "model"} == {}


def test_train_py_stays_short() -> None:
    path = ROOT / "train.py"
    assert path.read_text().count("\n") <= 220
    lengths = {node.name: node.end_lineno - node.lineno + 1 for node in functions(path) if node.end_lineno}
    assert set(lengths) == {"main", "train"} and lengths["train"] <= 90
    assert not [node for node in tree_of(path).body if isinstance(node, ast.ClassDef)]
    found = list(imports(tree_of(path), inside_functions=True))
    assert sum(len(node.names) for node in found) <= 20
    fronts = {node.module for node in found if isinstance(node, ast.ImportFrom)} - {"__future__"}
    assert fronts <= set(DIRECTORIES)  # a name comes from the front of its directory


# ---- imports ----
def is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def imports(node: ast.AST, inside_functions: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif is_for_types(child):
            assert isinstance(child, ast.If)
            for other in child.orelse:
                yield from imports(other, inside_functions)
        elif inside_functions or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from imports(child, inside_functions)


def package_of(path: Path) -> list[str]:
    return list(path.parent.relative_to(ROOT).parts)


def imported(path: Path, inside_functions: bool) -> Iterator[tuple[str, str | None]]:
    """What a file imports from the project: (module, name of it), both absolute."""
    for node in imports(tree_of(path), inside_functions):
        if isinstance(node, ast.Import):
            found: list[tuple[str, str | None]] = [(alias.name, None) for alias in node.names]
        else:
            base = package_of(path)[: 1 - node.level or None] if node.level else []
            module = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            found = [(module, alias.name) for alias in node.names]
        yield from ((module, name) for module, name in found if module.split(".")[0] in DIRECTORIES)


def test_files_import_only_what_lies_below_their_directory() -> None:
    upward = []
    for path in PRODUCT:
        if path.name != "__main__.py":  # which is a command
            above = DIRECTORIES[DIRECTORIES.index(package_of(path)[0]) + 1 :]
            modules = {module for module, _ in imported(path, inside_functions=True)}
            upward += [f"{name_of(path)}: {name}" for name in modules if name.split(".")[0] in above]
    assert not upward, "\n".join(upward)


def test_imports_are_relative_within_a_directory_and_absolute_between() -> None:
    wrong = []
    for path in PRODUCT:
        for node in imports(tree_of(path), inside_functions=True):
            if isinstance(node, ast.ImportFrom) and node.level:
                ours = node.level > len(package_of(path))
            else:
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                ours = any(name.split(".")[0] == package_of(path)[0] for name in names)
            if ours:
                wrong.append(f"{name_of(path)}: {ast.unparse(node)}")
    assert not wrong, "\n".join(wrong)


@cache
def stub_of(package: Path) -> dict[str, Path]:
    """The file that each name of a lazy package comes from."""
    stub = package / "__init__.pyi"
    found = {}
    for node in ast.walk(tree_of(stub)) if stub.is_file() else ():
        if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module:
            for alias in node.names:
                found[alias.asname or alias.name] = file_of(
                    package / node.module.replace(".", "/"), alias.name
                )
    return found


def file_of(where: Path, name: str | None) -> Path:
    """The file that `from where import name` runs."""
    if (where / "__init__.py").is_file():
        if name and name in stub_of(where):
            return stub_of(where)[name]
        if name and ((where / name).is_dir() or (where / f"{name}.py").is_file()):
            return file_of(where / name, None)
        return where / "__init__.py"
    return where.with_suffix(".py")


def test_no_modules_import_each_other_in_a_circle() -> None:
    arrows = {}
    for path in PRODUCT:
        found = imported(path, inside_functions=False)
        arrows[path] = {file_of(ROOT / module.replace(".", "/"), name) for module, name in found} - {path}
    assert all(target in arrows for targets in arrows.values() for target in targets)
    while leaves := {path for path, targets in arrows.items() if not targets & arrows.keys()}:
        arrows = {path: targets for path, targets in arrows.items() if path not in leaves}
    assert sorted(map(name_of, arrows)) == []


# ---- what else CONTRIBUTING.md asks for ----
def test_config_classes_are_frozen_dataclasses() -> None:
    found, thawed = 0, []
    for path in PRODUCT:
        for node in ast.walk(tree_of(path)):
            # Hugging Face's own config class is no dataclass
            if not isinstance(node, ast.ClassDef) or "PreTrainedConfig" in map(ast.unparse, node.bases):
                continue
            decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
            dataclass = next((text for text in decorators if text.split("(")[0].endswith("dataclass")), "")
            settings = "config" in path.relative_to(ROOT).parts or path.stem == "config"
            if node.name.endswith("Config") or (dataclass and settings):
                found += 1
                if "frozen=True" not in dataclass:
                    thawed.append(f"{name_of(path)}: {node.name}")
    assert found >= 8 and not thawed, "\n".join(thawed)


PATCHES = re.compile(
    r"""setattr\(\s*["']?train[.,]|patch\(\s*["']train\.|patch\.object\(\s*train,|^\s*train\.\w+\s*=[^=]""",
    re.MULTILINE,
)


def test_no_test_patches_a_name_of_train_py() -> None:
    assert [name_of(path) for path in TESTS if PATCHES.search(path.read_text())] == []


# "to make room" is plain English, and plan.py's JSON has a key `room`
METAPHORS = re.compile(r"\b(rooms|houses?|(the|a|each|one|its|own|this|that|which) room)\b", re.IGNORECASE)


def test_texts_speak_of_directories_and_modules() -> None:
    said = [
        f"{name_of(path)}: {line.strip()}"
        for path in PRODUCT + COMMANDS + TEXTS
        for line in path.read_text().splitlines()
        if METAPHORS.search(line)
    ]
    assert not said, "\n".join(said)


def test_a_file_goes_to_one_worker(request: pytest.FixtureRequest) -> None:
    """pytest-xdist groups tests by what it adds to their names, which pytest 9.2 does not let it do."""
    if not getattr(request.config.option, "loadgroup", False):
        pytest.skip("not under --dist loadgroup")
    assert request.node.nodeid.endswith("@test_conventions.py")
