"""What ranks tell each other beside their collectives: that one should stop, and that they live."""

import atexit
import json
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from . import hang
from .hang import LOOK_EVERY_S, NoAnswer, Progress
from .request import Request

if TYPE_CHECKING:
    from ..engine.ranks import Ranks

LOOK_AT_OTHERS_S = 5.0
"""A rank that has waited so long looks whether the others live."""
BEAT_EVERY = 4
"""Rounds between two signs of life."""
END_S = 5.0
"""So long the end of a rank waits for its thread: where rank 0 is stopped, that is in the store."""


class Exchange:
    """This rank's word to the others and theirs to it, through the store at which they met.

    A thread of its own speaks to the store: where the process that keeps it is stopped, that waits too.

    Args:
        ranks: who trains.
        progress: of this rank.
        request: why this rank stops, once it does.
        ask: has this rank stop as another one does.
    """

    def __init__(
        self,
        ranks: "Ranks",
        progress: Progress,
        request: Callable[[], Request | None],
        ask: Callable[[str, int], None],
    ) -> None:
        from torch.distributed import PrefixStore, distributed_c10d

        store: Any = distributed_c10d._get_default_store()

        self._rank, self._world_size = ranks.rank, ranks.world_size
        self._progress, self._request, self._ask = progress, request, ask
        progress.longest_s = 0.9 * ranks.limit_s  # before the collective itself gives up, without a name
        self._store = PrefixStore("watch", store.clone())
        self._signs = 0
        self._others: dict[int, tuple[dict[str, Any], float]] = {}  # rank -> what it said, and when
        self._answered = progress.clock_s
        self._has_told = self._has_heard = False
        self._all_know = threading.Event()
        self._give_sign()
        ranks.gather(None)  # all have given one
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._talk, name="exchange", daemon=True)
        self._thread.start()
        atexit.register(self._end)

    def _end(self) -> None:
        """No more is said or heard. A thread that is in the store's C++ as the interpreter goes aborts it."""
        self._over.set()
        self._thread.join(END_S)

    def wait_until_all_know(self, timeout_s: float) -> None:
        """Return once every rank knows of the stop, or some seconds later."""
        self._all_know.wait(timeout_s)

    def look(self) -> None:
        """Raise NoAnswer where this rank waits for others longer than it may."""
        progress = self._progress
        if progress.waited_s < hang.NO_ANSWER_S or progress.name == "end":
            return
        waited = f"{progress.waited_s:.0f} s"
        if silent := self._silent():
            raise NoAnswer(
                f"{_names(silent)} of {self._world_size} gave no sign of life while this rank waited for "
                f"{waited}: {'is it' if len(silent) == 1 else 'are they'} stopped, or the machine gone?"
            )
        said = {rank: says for rank, (says, _) in self._others.items()}
        if progress.waited_s < max([progress.limit_s(), *(says["limit_s"] for says in said.values())]):
            return
        behind = min(says["beats"] for says in said.values())
        late = [rank for rank, says in said.items() if says["beats"] == behind < progress.beats]
        whom = f"for {_names(late)} of {self._world_size}" if late else "for each other"
        where = said[late[0]]["phase"] if late else progress.name
        raise NoAnswer(
            f"the ranks have waited {waited} {whom}, which live and do not get on (phase: {where}): does the "
            "network between them still work?"
        )

    def is_first_to_answer(self) -> bool:
        """Whether this is the rank that speaks for all that live: the lowest of them."""
        return self._rank == min(set(range(self._world_size)) - set(self._silent()))

    def _silent(self) -> list[int]:
        """Ranks that have not been heard of for too long; rank 0 where its store does not answer."""
        now = self._progress.clock_s
        if now - self._answered >= hang.NO_ANSWER_S:
            return [0] if self._rank > 0 else []
        return [rank for rank, (_, at) in self._others.items() if now - at >= hang.NO_ANSWER_S]

    def _talk(self) -> None:
        """What the thread does, until the store is gone."""
        rounds = 0
        while not self._over.is_set():
            try:
                self._tell_of_stops()
                if rounds % BEAT_EVERY == 0:
                    self._give_sign()
                if self._progress.waited_s > LOOK_AT_OTHERS_S:
                    self._hear_others()
                self._answered = self._progress.clock_s
            except Exception:  # rank 0 is gone: the collectives of this rank say so, or it does not answer
                self._all_know.set()
                return
            rounds += 1
            soon = self._has_told and not self._all_know.is_set()
            self._over.wait(LOOK_EVERY_S / 10 if soon else LOOK_EVERY_S)

    def _tell_of_stops(self) -> None:
        if self._all_know.is_set():
            return
        request = self._request()
        if request is None and self._store.check(["stop"]):
            reason, exit_status = json.loads(self._store.get("stop"))
            self._ask(reason, exit_status)
        elif request is not None and not self._has_told:
            said = json.dumps(request.of_rank(self._rank))
            self._store.compare_set("stop", "", said)
        if (request or self._request()) and not self._has_told:
            self._store.set(f"knows {self._rank}", "")
            self._has_told = True
        if self._has_told and self._store.check([f"knows {rank}" for rank in range(self._world_size)]):
            self._all_know.set()

    def _give_sign(self) -> None:
        self._signs += 1
        progress = self._progress
        limit_s = min(progress.limit_s(), 1e9)
        says = {"sign": self._signs, "beats": progress.beats, "limit_s": limit_s, "phase": progress.name}
        self._store.set(f"lives {self._rank}", json.dumps(says))

    def _hear_others(self) -> None:
        others = [rank for rank in range(self._world_size) if rank != self._rank]
        for rank, text in zip(
            others, self._store.multi_get([f"lives {rank}" for rank in others]), strict=True
        ):
            says = json.loads(text)
            before = self._others.get(rank)
            if before is None or before[0]["sign"] != says["sign"]:
                self._others[rank] = says, self._progress.clock_s


def _names(ranks: Sequence[int]) -> str:
    first = sorted(ranks)[:8]
    more = f" and {len(ranks) - len(first)} more" if len(ranks) > len(first) else ""
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, first))}{more}"
