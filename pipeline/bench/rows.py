"""What a benchmark measures: shapes, cases (the keys of the table) and results, with their arithmetic. No torch.

An image is one window with all its dates and sensors, as an encoder sees it. Figures follow from one number, the median
time of a pass over a batch; this module turns it into rates, so that they can be checked by hand.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.encode.layout import RELEASED
from pipeline.errors import InvalidInputError
from pipeline.plan import flops
from pipeline.types import PIXEL_M, GridSpec

if TYPE_CHECKING:
    from pipeline.types import ModelCard

PRECISIONS = ("fp32", "fp16", "bf16", "autocast")
"""``fp16`` and ``bf16`` cast weights and products; ``autocast`` keeps float32 weights, torch casts each product.
``fp32`` on GPUs is without TF32, torch's default."""
COMPILE = {"on": (True,), "off": (False,), "both": (False, True)}
S2 = "sentinel2_l2a"
IDLE_CORES = 0.25
"""Cores that other processes may keep busy on a CPU that counts as idle: background services use a few per cent."""
TOY = "toy"
"""A size that was never released, for tests."""
_SHAPE = re.compile(r"T(?P<periods>\d+)x(?P<window>\d+)/(?P<patch>\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Input of one image: ``periods`` dates of ``window_px`` x ``window_px`` 10 m pixels in tokens of ``patch_px``."""

    periods: int
    window_px: int
    patch_px: int

    def __str__(self) -> str:
        """``T12x64/8``."""
        return f"T{self.periods}x{self.window_px}/{self.patch_px}"

    @classmethod
    def parse(cls, text: str) -> Shape:
        """A shape from ``T12x64/8``: 12 dates, windows of 64 px, tokens of 8 px.

        Raises:
            InvalidInputError: Not of that form, or the window is not a multiple of the token.

        >>> Shape.parse("T12x64/8").window_px
        64
        """
        found = _SHAPE.fullmatch(text.strip())
        if found is None:
            raise InvalidInputError(f"shape {text!r} is not of the form T12x64/8 (dates, window px / patch px)")
        periods, window, patch = (int(part) for part in found.groups())
        if not 1 <= periods <= 12 or not 1 <= patch <= 8 or not window or window % patch:
            raise InvalidInputError(
                f"shape {text!r}: want 1..12 dates, a patch of 1..8 px and a window that is a multiple of it"
            )
        return cls(periods=periods, window_px=window, patch_px=patch)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One configuration: the key of a row. Equal cases are measured once per device.

    Attributes:
        device: Product name of the device.
        threads: torch threads of a pass; on a GPU those of the host.
        version: Of the model, ``v1`` .. ``v1.3``.
        size: ``nano``, ``tiny``, ...
        precision: One of ``PRECISIONS``.
        compiled: Through torch.compile.
        attention: Attention kernel as asked for: ``auto`` or a name; what ran is in the result.
        periods: Dates.
        window_px: Side of a window, 10 m pixels.
        patch_px: Side of a token.
        batch: Windows per pass.
        sensors: Sensors, joined by ``+``.
    """

    device: str
    threads: int
    version: str
    size: str
    precision: str
    compiled: bool
    attention: str
    periods: int
    window_px: int
    patch_px: int
    batch: int
    sensors: str = S2

    @property
    def sensor_names(self) -> tuple[str, ...]:
        """The sensors, in order."""
        return tuple(self.sensors.split("+"))

    @property
    def model(self) -> str:
        """A model of this version and size: random weights, which decide no speed."""
        return f"random:{self.version}-{self.size}:0"

    @property
    def grid(self) -> GridSpec:
        """Windows without overlap."""
        return GridSpec(patch_px=self.patch_px, window_px=self.window_px, overlap_px=0, tile_px=512)

    def label(self) -> str:
        """A short name for people."""
        shape = Shape(periods=self.periods, window_px=self.window_px, patch_px=self.patch_px)
        how = f"{self.precision}{' compiled' if self.compiled else ''}"
        return f"{self.version} {self.size} {shape} {how} batch {self.batch}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DuelCase(Case):
    """A case beside the reference package.

    Attributes:
        rival_precision: ``fp32``, ``autocast`` or ``bf16`` (weights cast).
        rival_compiled: Whether the reference's encoder goes through torch.compile.
    """

    rival_precision: str
    rival_compiled: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """Under which a row was measured, and whether it could be.

    Attributes:
        kernel: Our attention kernel that ran.
        others_busy: Before the row: cores that other processes kept busy (GPU: share of the time it worked); None:
            unknown.
        torch: Its version.
        commit: Of earthpress.
        measured: UTC.
        error: Why there is no figure, "" if there is one.
    """

    kernel: str = ""
    others_busy: float | None = None
    torch: str = ""
    commit: str = ""
    measured: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result(Circumstances):
    """What was measured; None where the case failed, or where a figure cannot be had.

    Attributes:
        images_per_s: Windows per second, from the median pass.
        mpx_per_s: 10^6 input pixels per second: 10 m pixels of every date and sensor.
        tokens_per_s: Tokens that the encoder reads per second.
        km2_per_s: Ground per second if windows do not overlap.
        gflop_per_image: Work of one image, attention counted (``plan.flops``).
        attention_share: Part of it that is attention, 0..1.
        gflop_per_s: What was reached.
        gemm_gflop_per_s: Largest matrix product rate measured in the same process and dtype.
        share_of_gemm: The last but one over the last.
        peak_mb: Peak memory, 10^6 bytes. GPU: allocated by torch. CPU: growth while passes run, plus weights and input.
        build_s: Seconds to build the encoder.
        compile_s: Seconds of the first call of a compiled encoder, caches on disk unused.
        pass_s: Median seconds of a pass over a batch.
        pass_low_s: Lower quartile.
        pass_high_s: Upper quartile.
        passes: Passes that were timed.
    """

    images_per_s: float | None = None
    mpx_per_s: float | None = None
    tokens_per_s: float | None = None
    km2_per_s: float | None = None
    gflop_per_image: float | None = None
    attention_share: float | None = None
    gflop_per_s: float | None = None
    gemm_gflop_per_s: float | None = None
    share_of_gemm: float | None = None
    peak_mb: float | None = None
    build_s: float | None = None
    compile_s: float | None = None
    pass_s: float | None = None
    pass_low_s: float | None = None
    pass_high_s: float | None = None
    passes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DuelResult(Circumstances):
    """Ours and the reference's, pass after pass in one process.

    Attributes:
        images_per_s: Ours.
        rival_images_per_s: The reference's.
        ratio: Median of the ratios of paired passes: how many times faster ours is.
        ratio_low: Lower quartile.
        ratio_high: Upper quartile.
        pairs: Pairs of passes.
        difference: Distance of the two fields over the reference's norm: both have the same weights and pixels.
        rival: Its version.
    """

    images_per_s: float | None = None
    rival_images_per_s: float | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    pairs: int | None = None
    difference: float | None = None
    rival: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The product of everything that is to be measured.

    Attributes:
        versions: Versions of the model.
        sizes: Sizes; a version that was never released in a size is left out.
        precisions: Of ``PRECISIONS``.
        compiled: False, True or both.
        shapes: Input shapes.
        batch: Windows per pass; 0: as a run would choose.
        attention: ``auto`` or a kernel.
        sensors: What the encoder reads.
    """

    versions: tuple[str, ...]
    sizes: tuple[str, ...]
    precisions: tuple[str, ...]
    compiled: tuple[bool, ...]
    shapes: tuple[Shape, ...]
    batch: int = 0
    attention: str = "auto"
    sensors: tuple[str, ...] = (S2,)

    def __post_init__(self) -> None:
        _known("version", self.versions, tuple(RELEASED))
        _known("size", self.sizes, (*dict.fromkeys(s for sizes in RELEASED.values() for s in sizes), TOY))
        _known("precision", self.precisions, PRECISIONS)
        if self.batch < 0:
            raise InvalidInputError(f"batch is {self.batch} windows, want 1 or more, or 0 for the run's own choice")
        if not self.models:
            raise InvalidInputError(f"none of the versions {self.versions} was released as {' or '.join(self.sizes)}")

    @property
    def models(self) -> tuple[tuple[str, str], ...]:
        """The (version, size) that exist."""
        return tuple((v, s) for v in self.versions for s in self.sizes if s in (*RELEASED[v], TOY))

    @classmethod
    def parse(
        cls,
        *,
        versions: str,
        sizes: str,
        precisions: str,
        compiled: str,
        shapes: str,
        batch: int = 0,
        attention: str = "auto",
        sensors: str = S2,
    ) -> Request:
        """From the command line's comma-separated words; ``compiled`` is ``on``, ``off`` or ``both``.

        Raises:
            InvalidInputError: An unknown word, named.
        """
        _known("compile", (compiled,), tuple(COMPILE))
        return cls(
            versions=words(versions),
            sizes=words(sizes),
            precisions=words(precisions),
            compiled=COMPILE[compiled],
            shapes=tuple(Shape.parse(text) for text in words(shapes)),
            batch=batch,
            attention=attention,
            sensors=words(sensors),
        )


def words(text: str) -> tuple[str, ...]:
    """The words of a comma-separated list, each once.

    >>> words("nano, tiny,nano")
    ('nano', 'tiny')
    """
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _known(what: str, given: tuple[str, ...], known: tuple[str, ...]) -> None:
    unknown = [value for value in given if value not in known]
    if unknown or not given:
        raise InvalidInputError(f"{what} {', '.join(unknown) or 'list is empty'}: want some of {', '.join(known)}")


def figures(case: Case, card: ModelCard, *, pass_s: float, gemm: float | None) -> dict[str, float | None]:
    """The rates of a ``Result`` that follow from the median time of a pass.

    Args:
        case: What ran.
        card: Its model.
        pass_s: Seconds of a pass over ``case.batch`` windows.
        gemm: Measured peak of matrix products, operations per second; None: unknown.
    """
    images_per_s = case.batch / pass_s
    ground_px = case.window_px**2
    work = flops.window_work(card, case.grid, case.periods, sensors=case.sensor_names)
    tokens = flops.tokens_per_window(card, case.grid, case.periods, sensors=case.sensor_names)
    return {
        "images_per_s": images_per_s,
        "mpx_per_s": images_per_s * ground_px * case.periods * len(case.sensor_names) / 1e6,
        "tokens_per_s": images_per_s * tokens,
        "km2_per_s": images_per_s * ground_px * (PIXEL_M / 1000) ** 2,
        "gflop_per_image": work.total / 1e9,
        "attention_share": work.attention_share,
        "gflop_per_s": images_per_s * work.total / 1e9,
        "gemm_gflop_per_s": None if gemm is None else gemm / 1e9,
        "share_of_gemm": None if gemm is None else images_per_s * work.total / gemm,
    }
