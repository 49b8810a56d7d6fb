"""One encoder process and the wire to it: how the parent starts it and asks, and what runs at the other end.

A request is (what to do, arguments, number of file descriptors that follow); each is answered in turn, except ``drop``.

The process is a plain subprocess: multiprocessing would import the caller's main module in it, which runs a script
without a guard a second time. At its other end a thread listens to the parent, so that it ends within moments of the
parent's end, whatever that was (the socket then closes), also in the middle of a forward pass. SIGINT and SIGTERM are
for the parent to act on. torch is imported there only when all that is in place, and here not at all.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from pipeline.errors import DataError, DeviceError, EarthpressError, TransientError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from pipeline.encode.gate import GateReport
    from pipeline.encode.session import Session
    from pipeline.encode.shared import Shared
    from pipeline.types import Stack

    Request = tuple[str, tuple[Any, ...], tuple[int, ...]]

log = logging.getLogger(__name__)

Members = tuple[tuple[int, int, int], ...]
"""(index, row, col) of windows: position in the caller's list, north-west lattice pixel."""
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
"""Set before the interpreter starts: OpenMP reads its variable when torch is loaded."""
STOP_S = 5.0
"""How long a process that should end at once may take before it is killed."""
SILENT = "drop"


class Child:
    """The parent's end: a process, and what it was asked."""

    def __init__(self) -> None:
        """Start the process; it gets ready in the background.

        Raises:
            DeviceError: The machine does not let us.
        """
        ours, theirs = socket.socketpair()
        self._words = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process
        self.connection = Connection(ours.detach())
        self.about = 0
        self._asked, self._built, self._holds = False, False, 0
        paths = os.pathsep.join(path for path in sys.path if path)
        try:
            with theirs:
                self.process = subprocess.Popen(
                    [sys.executable, "-P", "-c", f"from pipeline.encode.child import main; main({theirs.fileno()})"],
                    stdin=subprocess.DEVNULL,
                    stdout=self._words,
                    stderr=self._words,
                    pass_fds=(theirs.fileno(),),
                    env={**os.environ, **ENVIRONMENT, "PYTHONPATH": paths},
                    start_new_session=True,  # Ctrl-C in a terminal is for the parent
                )
        except OSError as err:
            self.connection.close()
            self._words.close()
            raise DeviceError(f"cannot start an encoder process ({err}): use run.encoders=threads") from err

    @property
    def free(self) -> bool:
        """Whether it is ready for work and has none."""
        return self._built and not self._asked

    def ask(self, name: str, *arguments: Any, about: int = 0, fds: tuple[int, ...] = ()) -> None:
        """Send a request that will be answered; a process that is gone shows when the answer is waited for.

        Args:
            name: A method of ``Work``.
            arguments: Its arguments.
            about: The tile that this is about, 0: none.
            fds: Descriptors that come after the arguments.
        """
        self._asked, self.about = True, about
        self._send(name, arguments, fds)

    def build(self, parts: Shared) -> None:
        """Have it open its session; nothing else is asked before that is answered."""
        self.ask("build", fds=(parts.fd,))

    def piece(self, tile: int, shape: tuple[int, ...], members: Members, *, fds: tuple[int, int]) -> None:
        """Ask for some windows of a tile; the first time, with the tile's memory."""
        known, self._holds = self._holds == tile, tile
        self.ask("piece", tile, shape, members, about=tile, fds=() if known else fds)

    def drop(self, tile: int) -> None:
        """Have it let go of a tile's memory, if it holds that; there is no answer."""
        if self._holds == tile:
            self._holds = 0
            self._send(SILENT, (tile,), ())

    def answer(self) -> tuple[str, bool, Any]:
        """(what was asked, whether that went well, the answer or error).

        Raises:
            EOFError, OSError: It is gone.
        """
        name, fine, value = self.connection.recv()
        self._asked = False
        self._built |= name == "build" and fine
        return name, fine, value

    def lost(self) -> bool:
        """Whether the process has ended."""
        return self.process.poll() is not None

    def end(self, seconds: float = STOP_S) -> None:
        """Close the wire, at which the process ends; kill it if it takes longer."""
        self.connection.close()
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._words.close()

    def obituary(self, need_bytes: int) -> str:
        """What became of a process that is gone, and perhaps why; ``need_bytes`` is the memory that it takes."""
        try:
            code = self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return f"encoder process {self.process.pid} closed its connection: killed"
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        if code == -signal.SIGKILL:
            how += (
                f" (out of memory? It takes {need_bytes / 1e6:.0f} MB and activations: use fewer run.encoder_threads)"
            )
        words = self._last_words()
        return f"encoder process {self.process.pid} {how}{f'; its last words: {words}' if words else ''}"

    def _last_words(self) -> str:
        self._words.seek(0)
        lines = self._words.read().decode(errors="replace").strip().splitlines()
        return " | ".join(lines[-3:])[-500:]

    def _send(self, name: str, arguments: tuple[Any, ...], fds: tuple[int, ...]) -> None:
        try:
            self.connection.send((name, arguments, len(fds)))
            for fd in fds:
                send_handle(self.connection, fd, self.process.pid)
        except OSError:
            log.debug("encoder process %d does not listen", self.process.pid)


def main(handle: int) -> None:
    """Serve the parent at the other end of a socket, until it is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    os.set_inheritable(handle, False)  # noqa: FBT003 - positional only; a compiler started here must not hold it open
    parent, inbox = Connection(handle), SimpleQueue[Any]()
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
    """An error of ours that says the same in the parent; any other becomes one, with its trace as a note."""
    if isinstance(error, EarthpressError) and _travels(error):
        return error
    text = f"encoder process: {type(error).__name__}: {error}"
    # what torch raises when its allocator gets nothing is a RuntimeError
    short = isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error)
    ours = TransientError(f"{text}; out of memory? Use fewer run.encoder_threads") if short else DataError(text)
    ours.add_note("".join(traceback.format_exception(error)))
    return ours


def _travels(error: EarthpressError) -> bool:
    """Whether pickling keeps an error's class and message."""
    try:
        copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    except (pickle.PickleError, TypeError, AttributeError):
        return False
    return type(copy) is type(error) and str(copy) == str(error)


class Work:
    """The other end: what the parent may ask for. Descriptors come last and are taken over."""

    def __init__(self) -> None:
        from pipeline.encode import shared, workers  # noqa: PLC0415 - torch: after main has prepared the process

        self._shared, self._workers = shared, workers
        self._session: Session  # from the first request on, which is always ``build``
        self._tile: tuple[tuple[Stack, ...], torch.Tensor, NDArray[np.bool_]]
        self._number = 0

    def build(self, fd: int) -> None:
        """Open the session whose parts the parent has packed."""
        memory = self._shared.Shared(fd, private=True)
        encoder, checkpoint, arguments = self._shared.unpack(memory)
        memory.close()
        self._session = self._workers.Movable(checkpoint, encoder=encoder, threads=1, **arguments)

    def warm_up(self) -> float:
        """As ``Session.warm_up``."""
        return self._session.warm_up()

    def gate(self) -> GateReport:
        """As ``Session.gate``."""
        return self._session.gate()

    def piece(self, tile: int, shape: tuple[int, ...], members: Members, *fds: int) -> float:
        """Encode some windows of a tile into the parent's memory.

        Args:
            tile: Its number.
            shape: (window, token_row, token_col, field_dims) of the tile's fields.
            members: The windows.
            fds: Packed stacks and memory of the fields, with the first piece of a tile.

        Returns:
            Core-seconds worked.
        """
        if fds:
            pixels, fields = self._shared.Shared(fds[0], private=True), self._shared.Shared(fds[1])
            self._tile = (self._shared.unpack(pixels), *self._workers.field_arrays(fields, shape))
            self._number = tile
            pixels.close()
            fields.close()
        stacks, values, valid = self._tile
        before = self._session.busy_s
        done = self._session.encode(stacks, [(row, col) for _, row, col in members])
        where = [index for index, _, _ in members]
        values[where] = done.values
        valid[where] = done.valid
        return self._session.busy_s - before

    def drop(self, tile: int) -> None:
        """Let go of a tile's memory."""
        if self._number == tile:
            del self._tile
            self._number = 0
