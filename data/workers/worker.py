"""A data worker: what it does, and how the training process sees it."""

import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NoReturn

import psutil

from ..interrupts import LOOK_SECONDS, check_interrupted
from ..parallel import portable
from .sequences import Chunk, Inbox, LaneSequence, Maker, Place, send
from .starter import Starter

CHUNK = 16
"""Sequences that a worker hands over at once, at most."""
MOST_DEATHS = 4
"""So often in a row a worker may die before it has handed over anything."""
QUIET_TIMEOUTS = 1.5
"""A worker that has computed nothing for so many `data.timeout_s` is stopped or hangs. A read from the
network ends by itself after one."""
PIECE_BYTES = 2**20


class Worker(Iterator[LaneSequence]):
    """The sequences that a process makes from `place` on, up to `ahead` of them before they are asked for.

    A process that is killed, or hangs, is followed by another, which makes what has not come over. Errors
    that it hands over come in their place and end it for good.

    Attributes:
        restarts: How often another process followed.

    Args:
        starter: Forks the process, which runs `make_for` with what the sequences are made of.
        place: Where the lanes begin.
        ahead: Sequences, at most.
        timeout_s: `data.timeout_s`.
        say: Is told when another process follows.
    """

    def __init__(
        self, starter: Starter, place: Place, ahead: int, timeout_s: float, say: Callable[[str], object]
    ) -> None:
        self.restarts = 0
        self._starter = starter
        self._place = place  # behind the last sequence that has come over
        self._chunk = min(CHUNK, ahead)
        self._chunks_ahead = ahead // self._chunk
        self._quiet_seconds = QUIET_TIMEOUTS * timeout_s
        self._say = say
        self._deaths = 0  # since the last chunk
        self._pid = 0
        self._connection: socket.socket | None = None
        self._inbox = Inbox()
        self._ready: Iterator[LaneSequence] = iter(())
        self._error: Exception | None = None

    def start(self) -> None:
        """Fork the process, where it is not there yet."""
        if self._connection is not None:
            return
        self._inbox = Inbox()
        self._pid, self._connection = self._starter.fork()
        self._connection.settimeout(LOOK_SECONDS)
        with suppress(OSError):  # one that is dead already is noticed when its data is wanted
            send(self._connection, (self._place, self._chunk, self._chunks_ahead))

    def close(self) -> None:
        """Take nothing more from the process."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __next__(self) -> LaneSequence:
        sequence = next(self._ready, None)
        if sequence is None:
            self._ready = self._receive()
            sequence = next(self._ready)
        return sequence

    def _receive(self) -> Iterator[LaneSequence]:
        if self._error is not None:
            raise self._error
        self.start()
        quiet, busy = 0.0, self._cpu_seconds()
        while (made := self._inbox.next()) is None:
            assert self._connection is not None
            try:
                piece = self._connection.recv(PIECE_BYTES)
            except TimeoutError:
                check_interrupted()
                # looks are counted and not seconds: this process may have been stopped too
                quiet += LOOK_SECONDS
                if quiet >= self._quiet_seconds:
                    before, busy, quiet = busy, self._cpu_seconds(), 0.0
                    if busy <= before:
                        self._begin_again(hangs=True)
                continue
            except ConnectionError:
                piece = b""
            quiet = 0.0
            if piece:
                self._inbox.add(piece)
            else:  # it is gone, perhaps in the middle of a message
                self._begin_again(hangs=False)
                busy = self._cpu_seconds()
        if isinstance(made, Exception):
            self._error = made
            raise made
        assert self._connection is not None
        with suppress(OSError):
            self._connection.send(b"1")  # one more may be made
        sequences = made.sequences()
        self._place = self._place.after(sequences)
        self._deaths = 0
        return iter(sequences)

    def _begin_again(self, hangs: bool) -> None:
        """Start the process again from what has come over. Raises OSError where it dies again and again."""
        code = self._starter.end(self._pid)
        self.close()
        self._deaths += 1
        if hangs:
            what = f"did nothing for {self._quiet_seconds:.0f} s and was ended"
        elif code is not None and code < 0:
            what = f"was killed ({signal.Signals(-code).name}), perhaps for want of memory"
        else:
            what = "has ended" if code is None else f"has ended (exit code {code})"
        if self._deaths >= MOST_DEATHS:
            advice = (
                "see whether the disk or file system of data.source answers"
                if hangs
                else "lower data.workers or data.shuffle_window"
            )
            raise OSError(f"a process that reads the data {what}, {self._deaths} times in a row: {advice}")
        self.restarts += 1
        self._say(f"a process that reads the data {what}: another goes on where it stood")
        self.start()

    def _cpu_seconds(self) -> float:
        """What the process has computed so far, which stands still where it is stopped or hangs."""
        try:
            times = psutil.Process(self._pid).cpu_times()
            return times.user + times.system
        except psutil.Error:  # it is gone, as the end of the stream will say
            return 0.0


def make_for(connection: socket.socket, maker: Maker) -> NoReturn:
    """What the process does: it is told where to begin, and how much it may make ahead."""
    place, chunk_size, chunks_ahead = _first_message(connection)
    allowed = threading.Semaphore(chunks_ahead)
    outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_take_orders, args=(connection, allowed), daemon=True).start()
    threading.Thread(target=_send_all, args=(connection, outbox), daemon=True).start()
    chunk: list[LaneSequence] = []
    try:
        for sequence in maker.sequences(place):
            chunk.append(sequence)
            if len(chunk) == chunk_size:
                allowed.acquire()
                outbox.put(Chunk.of(chunk))
                chunk = []
    except Exception as error:
        if chunk:
            outbox.put(Chunk.of(chunk))
        outbox.put(portable(error))
    while True:
        time.sleep(60)


def _first_message(connection: socket.socket) -> tuple[Place, int, int]:
    inbox = Inbox()
    while (message := inbox.next()) is None:
        piece = connection.recv(PIECE_BYTES)
        if not piece:
            os._exit(0)
        inbox.add(piece)
    return message


def _take_orders(connection: socket.socket, allowed: threading.Semaphore) -> NoReturn:
    """Each byte allows one more chunk; the end of the stream is that of the training process."""
    with suppress(OSError):
        while orders := connection.recv(64):
            allowed.release(len(orders))
    os._exit(0)


def _send_all(connection: socket.socket, outbox: "queue.SimpleQueue[Any]") -> NoReturn:
    with suppress(OSError):
        while True:
            send(connection, outbox.get())
    os._exit(0)
