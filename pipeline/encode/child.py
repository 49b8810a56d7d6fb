"""One encoder process: does what ``workers`` in its parent asks of it, one thing at a time, and never outlives it.

A thread of its own listens to the parent, so that the process ends within moments of the parent's end (the connection
then closes, whatever the parent died of), also in the middle of a forward pass. SIGINT and SIGTERM are for the parent to
act on. torch is imported only when all that is in place.
"""

from __future__ import annotations

import os
import pickle
import signal
import threading
import traceback
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from pipeline.errors import DataError, EarthpressError, TransientError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from pipeline.encode.gate import GateReport
    from pipeline.encode.session import Session
    from pipeline.types import Stack

Request = tuple[str, tuple[Any, ...], tuple[int, ...]]
"""(what to do, its arguments, file descriptors)."""
SILENT = "drop"
"""The one request that is not answered."""


def main(handle: int) -> None:
    """Serve the parent at the other end of a socket, until it is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    os.set_inheritable(handle, False)  # a compiler started here must not hold the connection open
    parent, inbox = Connection(handle), SimpleQueue[Request]()
    threading.Thread(target=_listen, args=(parent, inbox), name="listen", daemon=True).start()
    work = Work()
    while True:
        name, arguments, fds = inbox.get()
        call: Callable[..., Any] = getattr(work, name)
        try:
            answer = (name, True, call(*arguments, *fds))
        except Exception as error:  # noqa: BLE001 - the boundary of the process: it goes on in the parent
            answer = (name, False, portable(error))
        if name != SILENT:
            parent.send(answer)


def _listen(parent: Connection, inbox: SimpleQueue[Request]) -> None:
    """Put requests into the inbox; end the process when there will be no more."""
    try:
        while True:
            name, arguments, count = parent.recv()
            inbox.put((name, arguments, tuple(recv_handle(parent) for _ in range(count))))
    finally:
        os._exit(0)


def portable(error: Exception) -> EarthpressError:
    """An error of ours that survives the way to the parent and says the same; with the trace of any other as a note."""
    if isinstance(error, EarthpressError):
        try:
            copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
        except Exception:  # noqa: BLE001 - whatever cannot be sent
            copy = None
        if isinstance(copy, type(error)) and str(copy) == str(error):
            return error
    text = f"encoder process: {type(error).__name__}: {error}"
    # what torch raises when its allocator gets nothing is a RuntimeError
    short = isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error)
    ours = TransientError(f"{text}; out of memory? Use fewer run.encoder_threads") if short else DataError(text)
    ours.add_note("".join(traceback.format_exception(error)))
    return ours


class Work:
    """What the parent may ask for; descriptors come last and are taken over."""

    def __init__(self) -> None:
        from pipeline.encode import shared, workers  # noqa: PLC0415 - torch, after main has prepared the process

        self._shared, self._workers = shared, workers
        self._session: Session | None = None
        self._tile: tuple[int, tuple[Stack, ...], torch.Tensor, NDArray[np.bool_]] | None = None

    @property
    def session(self) -> Session:
        """The session; ``build`` comes first."""
        assert self._session is not None
        return self._session

    def build(self, fd: int) -> None:
        """Open the session whose parts the parent has packed."""
        memory = self._shared.Shared(fd, private=True)
        encoder, checkpoint, arguments = self._shared.unpack(memory)
        memory.close()
        self._session = self._workers.Movable(checkpoint, encoder=encoder, threads=1, **arguments)

    def warm_up(self) -> float:
        """As ``Session.warm_up``."""
        return self.session.warm_up()

    def gate(self) -> GateReport:
        """As ``Session.gate``."""
        return self.session.gate()

    def piece(self, number: int, shape: tuple[int, ...], members: tuple[tuple[int, int, int], ...], *fds: int) -> float:
        """Encode some windows of a tile into the parent's memory.

        Args:
            number: Of the tile.
            shape: (window, token_row, token_col, field_dims) of the tile's fields.
            members: (index, row, col) of each window.
            fds: Packed stacks and memory of the fields, with the first piece of a tile.

        Returns:
            Core-seconds worked.
        """
        if fds:
            self._tile = None  # before the next is mapped
            pixels, fields = self._shared.Shared(fds[0], private=True), self._shared.Shared(fds[1])
            self._tile = (number, self._shared.unpack(pixels), *self._workers.field_arrays(fields, shape))
            pixels.close()
            fields.close()
        assert self._tile is not None
        assert self._tile[0] == number
        _, stacks, values, valid = self._tile
        before = self.session.busy_s
        done = self.session.encode(stacks, [(row, col) for _, row, col in members])
        where = [index for index, _, _ in members]
        values[where], valid[where] = done.values, done.valid
        return self.session.busy_s - before

    def drop(self, number: int) -> None:
        """Let go of a tile's memory."""
        if self._tile is not None and self._tile[0] == number:
            self._tile = None
