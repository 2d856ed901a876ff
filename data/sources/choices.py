"""What a user may say of a source beside its name: its split, and a subset and revision where it has them."""

from collections.abc import Sequence

from model.errors import UserError

from ..config import DataConfig
from .local import meaning

LOCAL_CHOICES = "`sample`, or a file, folder, glob or URL of .parquet, .jsonl or .bin files"


def refuse_options(config: DataConfig, key: str, options: Sequence[str] = ()) -> None:
    """Raise UserError for a `data.subset` or `data.revision` that has no effect, as only `options` have."""
    of_source = key.removesuffix("source")  # `data.` or `data.validation_`
    for option in ("subset", "revision"):
        given = getattr(config, option)
        if given is not None and option not in options:
            raise UserError(f"{of_source}{option} is {given!r}, but {key} {config.source} has no {option}s")


def split_of(key: str, source: str, wanted: Sequence[str], available: Sequence[str]) -> str:
    """The first of the splits `wanted` that a source has, by its name or one that means the same, as `val`
    and `validation`. Raises UserError where it has none of them."""
    for split in wanted:
        if split in available:
            return split
        for one in available:
            if meaning(one) == meaning(split):
                return one
    if key == "data.source":
        raise UserError(f"data.split is {wanted[0]!r}, but {source} has only {', '.join(available)}")
    raise UserError(f"{key}: {source} has only {', '.join(available)}, none of {', '.join(wanted)}")
