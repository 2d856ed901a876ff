"""Work on a source in several processes, or in threads where it waits for a network."""

import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, NoReturn, TypeVar

from .sources import Shard, shard_runs

Item = TypeVar("Item")
Result = TypeVar("Result")

RUNS_PER_WORKER = 4
"""So many runs of shards each process gets at least, so that all end at about the same time."""


def default_workers() -> int:
    """The number of processes when none is given: one for each core that this process may use, up to 16."""
    return min(16, len(os.sched_getaffinity(0)))


def shard_runs_for(workers: int, shards: Sequence[Shard]) -> list[list[Shard]]:
    """Runs of shards that one process reads in order, short enough that no other waits for it."""
    return shard_runs(shards, max(1, len(shards) // (RUNS_PER_WORKER * workers)))


def side_by_side(function: Callable[[Item], Result], items: Sequence[Item], threads: int) -> list[Result]:
    """What `function` gives for each of `items`, in their order. Once it has raised for one, no other begins.

    Raises:
        Exception: what `function` raises first.
    """
    failed = threading.Event()
    errors: list[Exception] = []

    def unless_failed(item: Item) -> Any:
        if failed.is_set():
            return None
        try:
            return function(item)
        except Exception as error:
            failed.set()
            errors.append(error)
            return None

    with ThreadPoolExecutor(threads) as pool:
        results = list(pool.map(unless_failed, items))
    if errors:
        raise errors[0]
    return results


def in_processes(
    function: Callable[[Item], Iterable[Result]], items: Sequence[Item], workers: int
) -> Iterator[Result]:
    """What `function` gives for each of `items`, as it comes, from forked processes (none for one worker).

    Results wait in the process that made them until they are taken. A process whose parent was killed ends
    with its next result.

    Raises:
        UserError, OSError: as `function` did, or a process was killed.
    """
    if workers <= 1:
        for item in items:
            yield from function(item)
        return
    context = multiprocessing.get_context("fork")
    counter = context.Value("q", 0)
    processes: dict[Any, Any] = {}  # by the end of the pipe that this process reads

    def work(sender: Connection, receivers: Sequence[Connection]) -> NoReturn:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted too, and ends this process
        for receiver in receivers:  # so that nobody but the parent can keep the pipes alive
            receiver.close()
        try:
            for result in _results(function, items, counter):
                sender.send(result)
        except BrokenPipeError:  # the parent is gone
            os._exit(1)
        os._exit(0)

    try:
        for _ in range(min(workers, len(items))):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=work, args=(sender, [*processes, receiver]), daemon=True)
            process.start()
            sender.close()
            processes[receiver] = process
        working = dict(processes)
        while working:
            ready: Any
            for ready in wait(list(working)):
                try:
                    result: Any = ready.recv()
                except (EOFError, OSError):  # the end of the pipe, also inside a message
                    process = working.pop(ready)
                    process.join()
                    if process.exitcode:
                        raise OSError(
                            f"a worker process was killed (exit code {process.exitcode}), perhaps for want "
                            "of memory: lower --workers"
                        ) from None
                    continue
                if isinstance(result, Exception):
                    raise result
                yield result
    finally:
        for process in processes.values():
            process.kill()
            process.join()


def _results(
    function: Callable[[Item], Iterable[Result]], items: Sequence[Item], counter: Any
) -> Iterator[Any]:
    """The results for the items that no other process takes, or the error that ends them."""
    try:
        while True:
            with counter.get_lock():
                number = counter.value
                counter.value += 1
            if number >= len(items):
                return
            yield from function(items[number])
    except Exception as error:
        yield portable(error)


def portable(error: Exception) -> Exception:
    """What to send to another process in place of an error.

    A `ValueError` (so also a `UserError`) or an `OSError` keeps its class, where it can be sent. Any other
    becomes a RuntimeError whose text is its traceback, which would be lost on the way.
    """
    if isinstance(error, (ValueError, OSError)):
        with suppress(Exception):
            return pickle.loads(pickle.dumps(error))
    return RuntimeError("".join(traceback.format_exception(error)))
