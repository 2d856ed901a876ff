"""The checkout as an installed package: what is in it, and that its code is what runs from any folder."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXTS = {path: path.read_text() for path in sorted(ROOT.glob("scripts/**/*.py"))}
COMMANDS = [path for path, text in TEXTS.items() if "__main__" in text and "from model" in text]
PACKAGES = ("model", "data", "training", "eval")
GUARDED = (
    "from model.checkout import refuse_other_checkout\n\nrefuse_other_checkout(__file__)\nprint('ran')\n"
)


def run(*command: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True
    )


def test_this_environment_runs_this_checkout_from_any_folder(tmp_path: Path) -> None:
    """Set-up installs the checkout editable; where this fails, run scripts/setup.sh."""
    names = [*PACKAGES, "train"]
    code = f"import {', '.join(names)}\nfor module in {', '.join(names)}: print(module.__file__)"
    done = run("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    expected = [ROOT / name / "__init__.py" for name in PACKAGES] + [ROOT / "train.py"]
    assert done.stdout.split() == [str(path) for path in expected]


def test_the_editable_install_is_a_path_and_not_an_import_hook(tmp_path: Path) -> None:
    """A hook would be loaded by every start of Python: each rank, each data worker, each command."""
    code = "import sys; print([m for m in sys.modules if 'editable' in m], sys.path[-1])"
    assert run("-c", code, cwd=tmp_path).stdout.strip() == f"[] {ROOT}"


def test_a_wheel_holds_all_modules_stubs_and_the_template(tmp_path: Path) -> None:
    copy = tmp_path / "checkout"
    copy.mkdir()
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE", "train.py"):
        shutil.copy(ROOT / name, copy)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    offline = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
    done = run("-m", "pip", "wheel", *offline, "-w", tmp_path, copy, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("normlab-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        (metadata,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        needs = archive.read(metadata).decode()
    wanted = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert held == wanted | {"train.py"}
    assert {
        "eval/page/template.html.j2",
        "eval/page/style.css",
        "eval/page/script.js",
        "model/__init__.pyi",
        "data/sources/parquet.py",
    } <= held
    assert "Requires-Dist: deepspeed==" in needs  # the pins of requirements.txt, which nothing repeats


def test_a_script_of_another_checkout_is_refused(tmp_path: Path) -> None:
    script = tmp_path / "scripts" / "plan.py"
    script.parent.mkdir()
    (tmp_path / "scripts" / "setup.sh").touch()
    script.write_text(GUARDED)
    done = run(script, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: {script} would run the code of {ROOT}, which is installed in {sys.prefix}: run "
        f"{tmp_path}/scripts/setup.sh once, and then the script with {tmp_path}/.venv/bin/python\n"
    )


@pytest.mark.parametrize("script", COMMANDS, ids=lambda path: path.name)
def test_every_script_asks_whose_code_it_runs(script: Path, tmp_path: Path) -> None:
    """A copy in another checkout refuses before anything else, also before its help text."""
    copy = tmp_path / script.relative_to(ROOT)
    copy.parent.mkdir(parents=True)
    shutil.copy(script, copy)
    (tmp_path / "scripts" / "setup.sh").touch()
    done = run(copy, "--help", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {copy} would run the code of {ROOT}, ")
    assert done.stderr.count("\n") == 1


def test_a_script_of_this_checkout_runs_also_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "linked").symlink_to(ROOT)
    code = f"__file__ = {str(tmp_path / 'linked' / 'scripts' / 'plan.py')!r}\n{GUARDED}"
    done = run("-c", code, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ran\n", "")
