"""What prepares and checks a GPU machine without a network, as far as a machine without a GPU can tell."""

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
import tarfile
import time
import zipfile
from contextlib import suppress
from importlib.metadata import packages_distributions
from pathlib import Path
from types import ModuleType

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "scripts" / "gpu_check"
TINY = ("--n_layer", "1", "--n_head", "2", "--n_embd", "32", "--block_size", "32", "--micro_batch", "2")


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec and spec.loader
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def settings(folder: Path, **more: str) -> dict[str, str]:
    """The environment of `on_device.sh`, with a kit in `folder` and this Python as the machine's."""
    return os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "KIT": str(folder / "kit"),
        "SCRATCH": str(folder / "scratch"),
        "OUT": str(folder / "out"),
        "DEVICE": "cpu",
        **more,
    }


def on_device(folder: Path, *parts: str, **more: str) -> subprocess.CompletedProcess[str]:
    """`on_device.sh` in this checkout."""
    words = ["bash", FOLDER / "on_device.sh", *parts]
    return subprocess.run(words, cwd=ROOT, env=settings(folder, **more), capture_output=True, text=True)


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    """A folder with a kit whose only wheel is the stand-in for W&B; all else is in this environment."""
    (tmp_path / "kit" / "wheels").mkdir(parents=True)
    (tmp_path / "kit" / "sample").symlink_to(ROOT / ".cache" / "sample")
    module("stub_wandb").main(tmp_path / "kit" / "wheels", "0.31.0")
    return tmp_path


@pytest.mark.parametrize("script", ["prepare.sh", "on_device.sh"])
def test_a_script_is_bash(script: str) -> None:
    assert os.access(FOLDER / script, os.X_OK)
    assert subprocess.run(["bash", "-n", FOLDER / script]).returncode == 0


def test_every_part_is_described_and_an_unknown_one_refused(kit: Path) -> None:
    done = on_device(kit, "imports", "everything")
    assert (done.returncode, done.stdout) == (2, "")
    told = re.fullmatch(r"error: 'everything' is no part; there are: (.*)\n", done.stderr)
    assert told
    head = (FOLDER / "on_device.sh").read_text().partition("set -uo")[0]
    guide = (ROOT / "docs" / "gpu.md").read_text()
    for part in told[1].split():
        assert re.search(rf"\b{part}\b", head), part
        assert f"`{part}`" in guide, part


def test_a_folder_without_a_kit_is_refused(tmp_path: Path) -> None:
    done = on_device(tmp_path, "install")
    assert done.returncode == 2
    assert done.stderr.startswith("error: run this in the root of a checkout with the kit of")


def test_what_prepare_brings_is_pinned() -> None:
    """`prepare.sh` takes versions from requirements.txt, so each name in it has to stand there."""
    text = (FOLDER / "prepare.sh").read_text()
    pinned = {
        line.partition("==")[0].lower()
        for line in (ROOT / "requirements.txt").read_text().splitlines()
        if "==" in line
    }
    lists = re.findall(r"^(?: {4})?(?:names|sources)\+?=\((.*?)\)", text, re.DOTALL | re.MULTILINE)
    assert len(lists) == 5
    words = re.sub(r"#.*", "", " ".join(lists).replace("\n    ", "\n").replace("\n", " \n")).split()
    names = [name for word in words for name in expanded(word)]
    assert {"lazy-loader", "deepspeed", "wandb", "opentelemetry-exporter-otlp-common"} <= set(names)
    assert [name for name in names if name.lower() not in pinned] == []


def expanded(word: str) -> list[str]:
    """`a-{b,c}` -> a-b, a-c, as bash does."""
    before, brace, rest = word.partition("{")
    return [f"{before}{middle}" for middle in rest.rstrip("}").split(",")] if brace else [word]


def test_a_failed_part_is_named_and_the_next_runs(kit: Path) -> None:
    done = on_device(kit, "bench", "install", BENCH="--no_such_option")
    assert done.returncode == 1
    assert "--- bench: exit status 2" in done.stdout and "no_such_option" in done.stdout
    assert done.stdout.index("--- bench") < done.stdout.index("Python 3.")
    assert done.stdout.endswith("failed: bench\n")
    assert (kit / "out" / "logs.tar.gz").is_file()


def test_what_is_cut_off_leaves_its_log(kit: Path) -> None:
    """All processes are killed while a part runs, as where the time of a job ends."""
    python, packed = kit / "python3", kit / "out" / "logs.tar.gz"
    python.write_text(
        f'#!/bin/sh\n[ "$1" = -X ] && echo so far && exec sleep 60\nexec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    environment = settings(kit, PACK_S="0.1", PATH=f"{kit}:{os.environ['PATH']}")
    words = ["bash", FOLDER / "on_device.sh", "imports"]
    with subprocess.Popen(words, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as started:
        try:
            while "so far" not in printed_by_imports(packed):
                assert started.poll() is None
                time.sleep(0.1)
        finally:
            script = psutil.Process(started.pid)
            for process in (script, *script.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):  # it was packing
                    process.kill()
    assert printed_by_imports(packed) == "so far\n"


def printed_by_imports(packed: Path) -> str:
    """What a packed log of the part says so far."""
    if not packed.is_file():
        return ""
    with tarfile.open(packed) as archive:
        log = archive.extractfile("logs/imports.log") if "logs/imports.log" in archive.getnames() else None
        return log.read().decode() if log else ""


def test_the_stand_in_for_wandb_has_what_tracking_uses(kit: Path, tmp_path: Path) -> None:
    (wheel,) = (kit / "kit" / "wheels").iterdir()
    code = (
        "from pathlib import Path\nimport wandb\n"
        "from training.tracking.tracker import Tracker, TrackingConfig\n"
        "from training.state import TrainState\n"
        "assert '0.31.0-py3-none-any.whl' in wandb.__file__\n"
        f"tracker = Tracker(TrackingConfig(), Path({str(tmp_path)!r}), None, {{}}, print)\n"
        "tracker.log('train', 1, {'loss': 2.0})\ntracker.alert('a', 'b')\n"
        "tracker.log_checkpoint(Path('.'), TrainState(), {})\n"
        "tracker.finish({'status': 'finished'})\n"
    )
    for mode in ("disabled", "offline", "online"):
        environment = os.environ | {"PYTHONPATH": str(wheel), "WANDB_MODE": mode}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, (mode, done.stderr)
        assert "W&B is lost" not in done.stdout


def test_a_slim_lm_eval_keeps_the_tasks_that_are_known(tmp_path: Path) -> None:
    wheel = tmp_path / "lm_eval-1-py3-none-any.whl"
    kept = [
        "lm_eval/__init__.py",
        "lm_eval/tasks/manager.py",
        "lm_eval/tasks/piqa/piqa.yaml",
        "lm_eval/tasks/arc/arc_easy.yaml",
        "lm_eval-1.dist-info/METADATA",
    ]
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in [*kept, "lm_eval/tasks/mmlu/mmlu.yaml", "lm_eval-1.dist-info/RECORD"]:
            archive.writestr(name, name)
    module("slim_lm_eval").main(str(wheel))
    with zipfile.ZipFile(wheel) as archive:
        record = archive.read("lm_eval-1.dist-info/RECORD").decode()
        assert archive.namelist() == [*kept, "lm_eval-1.dist-info/RECORD"]
        assert archive.read(kept[2]).decode() == kept[2]
    assert [line.partition(",")[0] for line in record.splitlines()] == [*kept, "lm_eval-1.dist-info/RECORD"]


def test_the_probe_measures_the_loss_and_the_model(tmp_path: Path) -> None:
    file = tmp_path / "times.json"
    command = [
        sys.executable,
        FOLDER / "probe.py",
        *TINY,
        "--vocab_size",
        "300",
        "--device",
        "cpu",
        "--json",
        file,
    ]
    environment = os.environ | {"TORCHDYNAMO_DISABLE": "1"}  # compiling takes most of the time
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    times = json.loads(file.read_text())
    assert {
        "linear c_fc, forward",
        "attention, default, forward and backward",
        "loss, chunks of 4096",
    } <= set(times)
    assert "  a chunk's gradient, static shapes" in times
    assert "model, compiled, flash: forward and backward" in times


@pytest.mark.slow
def test_a_run_is_checked_as_on_the_device(kit: Path) -> None:
    tiny = "--model.n_layer 1 --model.n_head 2 --model.n_embd 32 --model.block_size 64 --train.compile false"
    sizes = {"SMALL": "1", "STEPS": "3", "ACCUMULATION": "1", "EXTRA": tiny, "PATIENCE": "5"}
    done = on_device(kit, "imports", "small", "eval", **sizes)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "on cpu gloo" in done.stdout
    assert re.search(r"^RESULT small_1: finished, [\d.]+ tokens/s", done.stdout, re.MULTILINE)
    assert "sample_lastword" in done.stdout


def test_kit_and_machine_have_all_that_is_imported() -> None:
    ours = {"model", "data", "training", "eval", "train"}
    files = [
        ROOT / "train.py",
        *(path for name in sorted(ours - {"train"}) for path in (ROOT / name).rglob("*.py")),
    ]
    imported = set()
    for node in (node for path in files for node in ast.walk(ast.parse(path.read_text()))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            imported.add(node.module.partition(".")[0])
    distributions = packages_distributions()
    needed = {
        distributions[name][0].lower().replace("_", "-")
        for name in imported - ours - sys.stdlib_module_names
        if name in distributions  # what a file of the run folder imports is not installed
    }
    assert {"torch", "deepspeed", "braceexpand"} <= needed
    listed = ((FOLDER / "prepare.sh").read_text() + (ROOT / "docs" / "gpu.md").read_text()).lower()
    words = set(re.findall(r"[\w-]+", listed.replace("_", "-")))
    assert needed - words == set()
