"""How the suite runs: without busy threads, and cut so that two workers share it evenly."""

import os
import tempfile
from typing import TYPE_CHECKING

# Before torch is imported: its threads would wait for each other busily where others use the cores too, and
# one is enough for tiny models.
os.environ["OMP_WAIT_POLICY"] = "passive"
os.environ["OMP_NUM_THREADS"] = "1"
# not among the user's: what is remembered of tests' files is of no use
os.environ.setdefault("NORMLAB_HASH_DIR", os.path.join(tempfile.gettempdir(), "normlab_hashes_of_tests"))

import pytest

if TYPE_CHECKING:
    import torch

# what tests read of remote files is kept for no later run
_footers = tempfile.TemporaryDirectory()
os.environ["NORMLAB_FOOTERS_DIR"] = _footers.name

LONGEST_FIRST = (
    "test_train.py",
    "training/test_universal.py",
    "training/test_compilation.py",
    "scripts/test_scripts.py",
    "test_train_data.py",
    "training/test_accounting.py",
    "training/test_design_matrix.py",
    "training/test_ds_matrix.py",
    "test_train_documents.py",
    "model/test_preflight.py",
    "training/test_catalogue.py",
    "test_train_universal.py",
    "test_train_design.py",
    "eval/test_jobs.py",
    "model/test_huggingface.py",
)
"""Files in the order in which workers should take them; all others follow. See CONTRIBUTING.md."""
SPLIT = ("training/test_catalogue.py", "training/test_ds_matrix.py", "training/test_ds_no_effect.py")
"""Files whose tests share nothing that is dear to make, so that several workers may take them."""


@pytest.fixture
def large_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cuts a tiny source as a large one is cut: a shard is a row group, or a thousand rows of one."""
    monkeypatch.setattr("data.sources.documents.SHARDS", 1e-3)


@pytest.fixture(scope="session")
def gpu() -> "torch.device":
    """Where tests that are marked `gpu` compute: the GPU, or what NORMLAB_GPU_TESTS names for a rehearsal."""
    import torch

    return torch.device(os.environ.get("NORMLAB_GPU_TESTS", "cuda"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips what needs a GPU where there is none."""
    if item.get_closest_marker("gpu") and "NORMLAB_GPU_TESTS" not in os.environ:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a GPU")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Under pytest-xdist a file goes to one worker, which makes its fixtures, and the longest first."""
    order = {name: number for number, name in enumerate(LONGEST_FIRST)}

    def file_of(item: pytest.Item) -> str:
        return item.path.relative_to(item.config.rootpath / "tests").as_posix()

    items.sort(key=lambda item: order.get(file_of(item), len(order)))
    for item in items:
        if file_of(item) not in SPLIT and not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(file_of(item)))
