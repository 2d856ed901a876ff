"""train_batch_size = micro-batch x accumulation steps x ranks: what follows from what is given."""

from collections.abc import Mapping, Set
from dataclasses import dataclass

from model.errors import UserError

TOTAL, MICRO, ACCUMULATION = BATCH_SIZES = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
)
"""The keys of the DeepSpeed JSON, in the order in which they stay: the first is the experiment's."""


class IndivisibleBatch(UserError):
    """The global batch is not micro-batch x accumulation x ranks.

    Attributes:
        sizes: the batch sizes that count, by their keys in the JSON
    """

    def __init__(self, sentence: str, sizes: Mapping[str, int]) -> None:
        super().__init__(sentence)
        self.sizes = sizes


@dataclass(frozen=True)
class BatchSizes:
    """All three, for a number of ranks.

    Attributes:
        values: by their keys in the JSON
        notes: a sentence where an override changes another size that the JSON gives
    """

    values: dict[str, int]
    notes: tuple[str, ...] = ()


def batch_sizes(given: Mapping[str, int], overridden: Set[str], ranks: int, where: str) -> BatchSizes:
    """The sizes that are left out, and with an override those that have to give way.

    Without overrides the sizes of the JSON have to agree. What is overridden counts; the JSON fills in what
    two sizes need, the global batch before the micro-batch, and the third follows from the two.

    Args:
        given: of the JSON, with the overrides in.
        overridden: the keys that the command line sets.
        ranks: how many will train.
        where: the JSON, for sentences.

    Raises:
        UserError: neither the global batch nor the micro-batch is given.
        IndivisibleBatch: they do not divide.
    """
    counts = {name: given[name] for name in BATCH_SIZES if name in given}
    if overridden and len(counts) == len(BATCH_SIZES) > len(overridden):
        follows = next(name for name in reversed(BATCH_SIZES) if name not in overridden)
        del counts[follows]
    total, micro, accumulation = (counts.get(name) for name in BATCH_SIZES)
    if total is None:
        if micro is None:
            raise UserError(f"{where} sets neither '{TOTAL}' nor '{MICRO}'")
        accumulation = accumulation or 1
        total = micro * accumulation * ranks
    elif micro is None:
        accumulation = accumulation or 1
        micro = total // (accumulation * ranks)
    elif accumulation is None:
        accumulation = total // (micro * ranks)
    if total != micro * accumulation * ranks:
        raise _indivisible(counts, overridden, ranks, where)
    values = dict(zip(BATCH_SIZES, (total, micro, accumulation), strict=True))
    changed = [name for name in given if values[name] != given[name]]
    return BatchSizes(values, tuple(_note(values, name, given, ranks) for name in changed))


def _note(values: Mapping[str, int], changed: str, given: Mapping[str, int], ranks: int) -> str:
    kept = " and ".join(f"{name} {values[name]}" for name in BATCH_SIZES if name != changed)
    return (
        f"{changed} is {values[changed]} here, and {given[changed]} in the JSON: it follows from {kept} on "
        f"{ranks} rank(s)"
    )


def _indivisible(counts: Mapping[str, int], overridden: Set[str], ranks: int, where: str) -> IndivisibleBatch:
    listed = ", ".join(f"{name} {size}" for name, size in counts.items())
    sentence = (
        f"the batch sizes in {where} do not divide: {listed} on {ranks} rank(s), but {TOTAL} must be "
        f"{MICRO} x {ACCUMULATION} x ranks"
    )
    of_a_rank, rest = divmod(counts[TOTAL], ranks)
    if MICRO in counts and MICRO not in overridden and of_a_rank and not rest:
        largest = next(m for m in range(min(counts[MICRO], of_a_rank), 0, -1) if of_a_rank % m == 0)
        sentence += f": give --ds.{MICRO} {largest} too"
    elif rest:
        sentence += f": {TOTAL} has to be a multiple of {ranks}"
    return IndivisibleBatch(sentence, counts)
