"""The other ranks of this host, watched: one that dies is named with its signal, and nobody waits for it."""

import errno
import fcntl
import os
import select
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from model.errors import DIVERGED, FAILED, INTERRUPTED

ENDS_WITHIN_S = 20.0
"""So long this rank may go on after another has died: its own error, of the lost connection, says more."""
WELL = (0, DIVERGED, INTERRUPTED)
"""How a rank ends that has not failed."""
# linux/pidfd.h: what there is since Linux 6.15 of a process that its parent has already waited for
_INFO_SIZE, _INFO_EXIT, _EXIT_CODE = 64, 1 << 3, 60
_GET_INFO = (3 << 30) | (_INFO_SIZE << 16) | (0xFF << 8) | 11


class Member(NamedTuple):
    """A rank's process: its number, where its process ids count, and its process id there."""

    rank: int
    namespace: str
    pid: int


Died = Callable[[int, int], object]
"""Is given the rank that died and its status, as `os.wait` gives it."""


def this_process(rank: int) -> Member:
    """This rank, for the others. Processes of one boot and one namespace see each other's ids."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return Member(rank, f"{boot} {os.readlink('/proc/self/ns/pid')}", os.getpid())


@contextmanager
def others_watched(rank: int, died: Died, members: Sequence[Member]) -> Iterator[None]:
    """While all ranks train: `died` is told of each other rank here that ends as no rank should.

    A thread of its own tells it. A rank that waits for one that is gone may wait for ever: where this one is
    still inside `ENDS_WITHIN_S` later, its process ends. How a rank on another host ended is not known here.

    Args:
        rank: this one's number.
        died: is told once for each rank; what it raises is printed.
        members: all ranks.
    """
    own = next(member for member in members if member.rank == rank)
    watched: dict[int, Member] = {}
    for member in members:
        if member.namespace == own.namespace and member.rank != rank:
            with suppress(OSError):  # it has ended already, or this Linux knows no such descriptors
                watched[os.pidfd_open(member.pid)] = member
    left = threading.Event()
    if watched:
        threading.Thread(target=_watch, args=(watched, died, left), name="other ranks", daemon=True).start()
    try:
        yield
    finally:
        left.set()


def _watch(watched: dict[int, Member], died: Died, left: threading.Event) -> None:
    poll = select.poll()
    for descriptor in watched:
        poll.register(descriptor, select.POLLIN)
    end: float | None = None
    while watched and not (left.is_set() and end is None):
        for descriptor, _ in poll.poll(500):
            poll.unregister(descriptor)
            member = watched.pop(descriptor)
            status = wait_status(descriptor, member.pid)
            os.close(descriptor)
            if status is None or os.waitstatus_to_exitcode(status) in WELL:
                continue
            end = end or time.monotonic() + ENDS_WITHIN_S
            try:
                died(member.rank, status)
            except Exception as error:  # a full disk may be why it died
                print(f"rank {member.rank} died, which could not be noted: {error}", file=sys.stderr)
        if end and not watched:
            break
        if end and time.monotonic() > end:
            break
    if end and not left.wait(max(0.0, end - time.monotonic())):
        print(f"another rank died {ENDS_WITHIN_S:g} s ago: this one ends", file=sys.stderr, flush=True)
        os._exit(FAILED)
    for descriptor in watched:
        os.close(descriptor)


def wait_status(descriptor: int, pid: int) -> int | None:
    """How a process that has ended did so, as `os.wait` gives it; None where that is not known any more.

    Args:
        descriptor: of `os.pidfd_open`.
        pid: its process id.
    """
    # As long as nobody has waited for it, its last entry says so.
    with suppress(OSError, ValueError):
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if state == "Z":
            return int(fields[-1])
    info = bytearray(_INFO_SIZE)
    struct.pack_into("Q", info, 0, _INFO_EXIT)
    try:
        fcntl.ioctl(descriptor, _GET_INFO, info)
    except OSError as error:
        if error.errno not in (errno.ENOTTY, errno.EINVAL, errno.ESRCH):
            raise
        return None
    known = struct.unpack_from("Q", info)[0] & _INFO_EXIT
    return struct.unpack_from("i", info, _EXIT_CODE)[0] if known else None
