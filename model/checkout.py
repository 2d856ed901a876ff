"""Which checkout's code runs. An environment has one checkout installed; a script may lie in another."""

import sys
from pathlib import Path

from .errors import print_error


def refuse_other_checkout(script: str) -> None:
    """End the process with one sentence where `script` is not of the checkout whose packages it would import.

    Python puts a script's own folder on the path, not the checkout's root, so `model`, `data`, `training` and
    `eval` come from the environment. Each script calls this before it imports anything else from them.

    Args:
        script: the script's `__file__`.

    Raises:
        SystemExit: with status 2, after the sentence.
    """
    path = Path(script).resolve()
    roots = (folder for folder in path.parents if (folder / "scripts" / "setup.sh").is_file())
    own = next(roots, path.parent)
    imported = Path(__file__).resolve().parents[1]
    if own != imported:
        sentence = (
            f"{script} would run the code of {imported}, which is installed in {sys.prefix}: run "
            f"{own}/scripts/setup.sh once, and then the script with {own}/.venv/bin/python"
        )
        sys.exit(print_error(sentence))
