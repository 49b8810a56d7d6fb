"""Values handed to other processes through memory that both map: pickled once, their arrays never copied again.

``pack`` pickles a value, but lays every numpy array and CPU tensor in it side by side into one piece of memory;
``unpack`` in another process gives the value back with views of that memory in their places.

The memory has no name: on Linux a memfd, elsewhere a temporary file that is unlinked at once. It travels as a file
descriptor and is gone with the last process that holds it, however that ended, so a kill leaves nothing to clean up. A
memfd is not part of /dev/shm either, which containers limit to 64 MB unless told otherwise.
"""

from __future__ import annotations

import io
import math
import mmap
import os
import pickle
import sys
import tempfile
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipeline.errors import TransientError

if TYPE_CHECKING:
    from numpy.typing import NDArray

ALIGN = 64
"""Bytes; what torch's own allocations have, and more than any vector register."""
_END = 8
"""The last bytes of packed memory say where the pickle begins."""


class Shared:
    """A piece of memory behind a file descriptor, mapped into this process.

    Arrays and tensors made of it keep the mapping alive; the descriptor is only for passing the memory on.
    """

    def __init__(self, fd: int, *, private: bool = False) -> None:
        """Map the memory behind a descriptor, which this object then owns.

        Args:
            fd: From another process's ``Shared``, or the one behind ``create``.
            private: What is written here stays here; what others have written is seen.
        """
        self.nbytes = os.fstat(fd).st_size
        self._map = mmap.mmap(fd, self.nbytes, access=mmap.ACCESS_COPY if private else mmap.ACCESS_WRITE)
        self.fd = fd  # last: it is the caller's until all went well

    @classmethod
    def create(cls, nbytes: int) -> Shared:
        """Get new memory, all zero.

        Raises:
            TransientError: The system refuses to map that much.
        """
        fd = _anonymous()
        try:
            os.ftruncate(fd, max(1, nbytes))  # pages come with their first write
            return cls(fd)
        except OSError as err:
            os.close(fd)
            raise TransientError(f"cannot get {nbytes / 1e6:.0f} MB of shared memory: {err.strerror}") from err

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any] | type, offset: int = 0) -> NDArray[Any]:
        """View of the bytes from ``offset`` on."""
        if 0 in shape:
            return np.zeros(shape, dtype)
        return np.frombuffer(self._map, dtype, math.prod(shape), offset).reshape(shape)

    def tensor(self, shape: tuple[int, ...], dtype: torch.dtype, offset: int = 0) -> torch.Tensor:
        """View of the bytes from ``offset`` on."""
        if 0 in shape:
            return torch.zeros(shape, dtype=dtype)
        return torch.frombuffer(self._map, dtype=dtype, count=math.prod(shape), offset=offset).view(shape)

    def write(self, data: memoryview, offset: int) -> None:
        """Write bytes from ``offset`` on; through the descriptor, which is twice as fast as through new pages."""
        while data.nbytes:
            count = os.pwrite(self.fd, data, offset)
            data, offset = data[count:], offset + count

    def close(self) -> None:
        """Close the descriptor; views stay, and the memory goes with the last of them, here and elsewhere."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            self.close()


def pack(value: object) -> Shared:
    """Pickle ``value`` into new memory, its arrays and tensors as plain bytes.

    Raises:
        TransientError: As ``Shared.create``.
    """
    stream = io.BytesIO()
    packer = _Packer(stream)
    packer.dump(value)
    text = stream.getbuffer()
    begin = packer.nbytes
    memory = Shared.create(begin + len(text) + _END)
    for offset, part in packer.parts:
        memory.write(_raw(part), offset)
    memory.write(text, begin)
    memory.write(memoryview(begin.to_bytes(_END, sys.byteorder)), begin + len(text))
    return memory


def unpack(memory: Shared) -> Any:
    """The value that was packed; its arrays and tensors are views of the memory.

    The memory must come from ``pack`` in a process of this run: unpickling trusts it.
    """
    end = memory.nbytes - _END
    begin = int.from_bytes(memory.array((_END,), np.uint8, end).tobytes(), sys.byteorder)
    return _Unpacker(memory, memory.array((end - begin,), np.uint8, begin).tobytes()).load()


def _anonymous() -> int:
    """Descriptor of new memory without a name."""
    if sys.platform == "linux":
        return os.memfd_create("earthpress")
    fd, name = tempfile.mkstemp(prefix="earthpress-")
    os.unlink(name)  # noqa: PTH108 - beside the descriptor
    return fd


def _raw(part: NDArray[Any] | torch.Tensor) -> memoryview:
    """The bytes of an array in the order of its axes."""
    if isinstance(part, np.ndarray):
        return np.ascontiguousarray(part).reshape(-1).view(np.uint8).data
    return part.contiguous().reshape(-1).view(torch.uint8).numpy().data


class _Packer(pickle.Pickler):
    """Keeps arrays and tensors apart, and says in the pickle where their bytes will lie."""

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream, protocol=5)
        self.parts: list[tuple[int, NDArray[Any] | torch.Tensor]] = []
        self.nbytes = 0
        self._seen: dict[int, int] = {}

    def persistent_id(self, value: object) -> tuple[Any, ...] | None:
        """(offset, shape, dtype) of what does not go through the pickle; None for what does."""
        if type(value) is np.ndarray and not value.dtype.hasobject:
            return self._place(value, value.nbytes), value.shape, value.dtype
        if type(value) is torch.Tensor and value.device.type == "cpu":
            return self._place(value, value.nbytes), tuple(value.shape), value.dtype
        return None

    def _place(self, part: NDArray[Any] | torch.Tensor, nbytes: int) -> int:
        if id(part) not in self._seen:
            self._seen[id(part)] = self.nbytes
            self.parts.append((self.nbytes, part))  # which keeps it, and therefore its id
            self.nbytes += -(-nbytes // ALIGN) * ALIGN
        return self._seen[id(part)]


class _Unpacker(pickle.Unpickler):
    """Puts views of the memory where ``_Packer`` left arrays and tensors out."""

    def __init__(self, memory: Shared, text: bytes) -> None:
        super().__init__(io.BytesIO(text))
        self._memory = memory

    def persistent_load(self, found: tuple[Any, ...]) -> NDArray[Any] | torch.Tensor:
        """The view of one (offset, shape, dtype)."""
        offset, shape, dtype = found
        if isinstance(dtype, torch.dtype):
            return self._memory.tensor(shape, dtype, offset)
        return self._memory.array(shape, dtype, offset)
