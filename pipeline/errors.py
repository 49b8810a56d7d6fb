"""The errors earthpress raises on purpose, grouped by what the caller does next.

::

    EarthpressError
    |-- InvalidInputError (ValueError)   fix the input and call again           exit 2
    |   `-- ConfigError                  fix the configuration                  exit 78
    |-- NoDataError                      nothing to read here; record, go on    exit 65
    |-- TransientError                   the same call may work later: retry
    |-- DataError                        this tile fails, the run goes on       exit 3
    |   `-- CheckpointError              the model's files cannot be used       exit 78
    |-- BudgetError                      stop before spending                   exit 75
    |-- StoppedError                     stopped by a signal, resumable         exit 75
    |-- DeviceError                      this device cannot run the model       exit 78
    `-- OutputError                      nothing is published                   exit 73

Every class has a stable ``kind``: it is what the ledger stores and tests match. Messages say what is wrong, the
value, the limit, which tile/item/band, and the way out; they never hold a signed URL, header or token.
"""

from __future__ import annotations

from typing import ClassVar


class EarthpressError(Exception):
    """Base of every error raised on purpose; ``exit_code`` follows DESIGN's table of exit codes."""

    kind: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1


class InvalidInputError(EarthpressError, ValueError):
    """The caller's input is wrong: fix it and call again."""

    kind = "invalid_input"
    exit_code = 2


class ConfigError(InvalidInputError):
    """The configuration is wrong: unknown key, impossible combination, missing file."""

    kind = "config"
    exit_code = 78


class NoDataError(EarthpressError):
    """There is nothing to read here (empty area, no scenes); a tile records it and the run goes on."""

    kind = "no_data"
    exit_code = 65


class TransientError(EarthpressError):
    """The same call may work later (throttled, timed out, connection lost)."""

    kind = "transient"
    exit_code = 75


class DataError(EarthpressError):
    """The data of this tile cannot be used; the tile fails and the run goes on."""

    kind = "data"
    exit_code = 3


class CheckpointError(DataError):
    """The model's files are missing, truncated, foreign or hold values that cannot be right."""

    kind = "checkpoint"
    exit_code = 78


class DeviceError(EarthpressError):
    """This device cannot run the model as configured (no bf16, failed start-up gate, other numerics class)."""

    kind = "device"
    exit_code = 78


class BudgetError(EarthpressError):
    """A limit set by the user would be passed; nothing more is spent."""

    kind = "budget"
    exit_code = 75


class StoppedError(EarthpressError):
    """Stopped by a signal; everything committed stays and the next run goes on from there."""

    kind = "stopped"
    exit_code = 75


class OutputError(EarthpressError):
    """The output cannot be written or holds something else; nothing is published."""

    kind = "output"
    exit_code = 73
