"""Write a wheel that stands in for W&B where there is no network: `python stub_wandb.py FOLDER VERSION`.

It has only what the modules of training/tracking/ touch. The real wheel is 20 MB and needs eleven more
packages (opentelemetry, platformdirs, ...) that the machine may lack.
"""

import sys
import zipfile
from pathlib import Path

FILES = {
    "wandb/__init__.py": '''
"""A stand-in: runs go nowhere; metrics.jsonl has everything."""
from types import SimpleNamespace as _S
from . import errors, sdk

Settings = Table = _S

class Artifact:
    def __init__(self, *a, **k): pass
    def add_reference(self, *a, **k): pass

class _Run:
    starting_step, offline = 0, True
    def __init__(self, dir, id): self.dir, self.id, self.summary = str(dir), id, {}
    def define_metric(self, *a, **k): pass
    def log(self, *a, **k): pass
    def log_artifact(self, *a, **k): pass
    def alert(self, *a, **k): pass
    def finish(self, *a, **k): pass

def teardown(*a, **k): pass
def setup(*a, **k): return _S(settings=_S(api_key=None, base_url="http://localhost"))
def init(*a, dir=".", id="run", **k): return _Run(dir, id)
''',
    "wandb/errors.py": "class CommError(Exception): pass\nclass UsageError(Exception): pass\n",
    "wandb/sdk/__init__.py": "from . import lib\n",
    "wandb/sdk/lib/__init__.py": "from . import runid\n",
    "wandb/sdk/lib/runid.py": "import uuid\n\ndef generate_id(length=8): return uuid.uuid4().hex[:length]\n",
}


def main(folder: str, version: str) -> None:
    """Write `FOLDER/wandb-VERSION-py3-none-any.whl`."""
    info = f"wandb-{version}.dist-info"
    files = FILES | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: wandb\nVersion: {version}\nSummary: stand-in\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: stub\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(Path(folder) / f"wandb-{version}-py3-none-any.whl", "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)


if __name__ == "__main__":
    main(*sys.argv[1:])
