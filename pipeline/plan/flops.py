"""How much work a window of the encoder is: tokens, and floating point operations part by part.

Pure arithmetic on shapes, for every released version and any set of sensors; knows nothing of devices, speed or price.
A multiply-add counts two. Counters that run on a CPU usually leave fused attention out; here it is counted, on a line
of its own, so that a figure can say what it holds.

Shapes are those of the released encoders (olmoearth-pretrain-minimal 0.1.5): a token is one cell of one period of one
band set of one sensor, all tokens of a window attend to each other, the MLP is four times as wide as the token.
Only matrix products count, as is usual: not softmax, norms, GELU, rotations and sums over periods. They are small
beside the products except for nano's softmax, one exponential per 64 operations of its 16-wide heads.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from pipeline.errors import ConfigError
from pipeline.types import PIXEL_M, GridSpec, ModelCard

KERNEL_PX = 8
"""Side of the stored patch kernel; smaller patches are resized to it, so a token always sees 8 x 8 samples."""
MLP_RATIO = 4
"""Width of a block's hidden layer over that of the token, every release."""
S2 = "sentinel2_l2a"
POOLED_TOKENS = ("mean", "max")
"""Outputs that pool the encoder's own tokens: the attention pooler of v1.3 does not run for them."""
BAND_SETS: dict[str, dict[str, tuple[int, ...]]] = {
    "v1": {S2: (4, 6, 2), "sentinel1": (2,), "landsat": (1, 10)},
    "later": {S2: (12,), "sentinel1": (2,), "landsat": (11,)},
}
"""Bands of each band set as released: three sets of Sentinel-2 in v1, one set per sensor since."""
NANO_WIDTH, NANO_HIDDEN, HIDDEN = 128, 12, 64
"""Channels of the per-pixel layer from v1.1 on: 12 for nano, 64 for every other size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Floating point operations of one window, part by part.

    Attributes:
        resize: Resizing to 8 x 8 samples per token as two dense matrix products, 0 at patch 8. Not in ``total``: it is
            a way of interpolating, not work of the model, and other implementations spend less.
        embed: Patch embedding: per-pixel layer and projection, or the convolution of v1.
        linear: Queries, keys, values, projection and MLP of all blocks.
        attention: Scores and weighted sums of all blocks.
        pooler: Linear layers of v1.3's attention pooler; the query of its first read is a constant.
        pooler_attention: Its scores and weighted sums.
        student: Linear layer from location token to student, for every cell of a window. Not in ``total``: it runs once
            per stitched token, after overlapping windows have become one field.
    """

    resize: float = 0.0
    embed: float = 0.0
    linear: float = 0.0
    attention: float = 0.0
    pooler: float = 0.0
    pooler_attention: float = 0.0
    student: float = 0.0

    @property
    def total(self) -> float:
        """What the model does in one window, attention included; without ``resize`` and ``student``."""
        return self.embed + self.linear + self.attention + self.pooler + self.pooler_attention

    @property
    def attention_share(self) -> float:
        """Share of ``total`` that is scores and weighted sums."""
        return (self.attention + self.pooler_attention) / self.total

    def __mul__(self, factor: float) -> Work:
        """Every part times ``factor``."""
        return Work(**{f.name: getattr(self, f.name) * factor for f in fields(self)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a square kilometre of kept output needs.

    Attributes:
        tokens: Tokens that the encoder reads, overlap included.
        flops: Floating point operations, attention included: ``Work.total`` of the windows and one student per cell.
        work: The same per km2, part by part; its ``student`` is already that of kept cells only.
        evaluations: How often a cell is encoded: (window / stride) squared.
    """

    tokens: float
    flops: float
    work: Work
    evaluations: float


def band_sets(card: ModelCard, sensors: tuple[str, ...] = (S2,)) -> tuple[tuple[int, ...], ...]:
    """Bands of each band set, per sensor: from the card, or as released where the card does not say.

    Raises:
        ConfigError: No sensor, one twice, or one that the model does not take.

    >>> nano = ModelCard(name="", version="v1", size="nano", dims=128, depth=4, heads=8, parameters=0,
    ...                  sensors=(), sha256="", trained=False)
    >>> band_sets(nano, ("sentinel2_l2a", "sentinel1"))
    ((4, 6, 2), (2,))
    """
    known = dict(card.band_sets) or BAND_SETS["v1" if card.version == "v1" else "later"]
    missing = [s for s in sensors if s not in known or (card.sensors and s not in card.sensors)]
    if missing or not sensors or len(set(sensors)) != len(sensors):
        raise ConfigError(
            f"sensors {list(sensors)}: model {card.name} ({card.version}) takes one or more of "
            f"{list(card.sensors or known)}, each once"
        )
    return tuple(known[s] for s in sensors)


def window_work(
    card: ModelCard,
    grid: GridSpec,
    periods: int,
    *,
    hidden: int | None = None,
    sensors: tuple[str, ...] = (S2,),
) -> Work:
    """The work of one window, or of one domain.

    A layer of a domain computes queries, projection and MLP for the cells that the layers after it need, keys and
    values for those that the layer before it gave, and every query meets the keys of one box.

    Where the stitcher uses the core of a window only (``centre``), the last layer computes queries, projection and MLP
    for the core's cells, and keys and values for all: exact, since no later layer reads the others. The last layer is
    the last block, or with v1.3's pooler, which reads every token, the last self-attention over the locations.

    Args:
        card: Version, widths, depths, output.
        grid: Window, patch and way of stitching.
        periods: Time steps.
        hidden: Channels of the per-pixel layer of the patch embedding; None: from the card, or as released.
        sensors: Sensors that are fed.

    Raises:
        ConfigError: The model does not take a sensor.
    """
    if grid.stitch == "neighbourhood":
        return _domain_work(card, grid, periods, hidden=hidden, sensors=sensors)
    cells, kept = (grid.window_px // grid.patch_px) ** 2, (grid.core_px // grid.patch_px) ** 2
    sets = band_sets(card, sensors)
    per_cell = periods * sum(len(groups) for groups in sets)  # tokens
    tokens, width = cells * per_cell, card.token_width
    pooled = card.pooler_depth > 0 and card.output not in POOLED_TOKENS
    # tokens that pass through queries, projection and MLP, summed over the blocks
    asking = (card.depth - 1) * tokens + (tokens if pooled else kept * per_cell)
    pooler, pooler_attention = _pooler(card, cells, tokens=tokens, kept=kept) if pooled else (0.0, 0.0)
    return Work(
        resize=periods * sum(map(sum, sets)) * _resize(grid),
        embed=float(cells * periods) * sum(_embed(card, bands, hidden) for groups in sets for bands in groups),
        linear=2.0 * width**2 * (2 * card.depth * tokens + (2 + 2 * MLP_RATIO) * asking),
        attention=4.0 * width * tokens * asking,
        pooler=pooler,
        pooler_attention=pooler_attention,
        student=2.0 * width * card.student * cells if pooled and card.output.startswith("student") else 0.0,
    )


def flops_per_window(
    card: ModelCard,
    grid: GridSpec,
    periods: int,
    *,
    hidden: int | None = None,
    sensors: tuple[str, ...] = (S2,),
) -> float:
    """Floating point operations of one window, attention included: ``window_work(...).total``.

    >>> nano = ModelCard(name="", version="v1.2", size="nano", dims=128, depth=4, heads=8, parameters=0,
    ...                  sensors=(), sha256="", trained=False)
    >>> round(flops_per_window(nano, GridSpec(patch_px=8, window_px=64, overlap_px=32, tile_px=512), 1) / 1e9, 3)
    0.123
    """
    return window_work(card, grid, periods, hidden=hidden, sensors=sensors).total


def tokens_per_window(card: ModelCard, grid: GridSpec, periods: int, *, sensors: tuple[str, ...] = (S2,)) -> int:
    """Tokens the encoder reads per window: cells x periods x band sets of all sensors."""
    groups = sum(len(sets) for sets in band_sets(card, sensors))
    return (grid.window_px // grid.patch_px) ** 2 * periods * groups


def cost_per_km2(
    card: ModelCard,
    grid: GridSpec,
    periods: int,
    *,
    hidden: int | None = None,
    sensors: tuple[str, ...] = (S2,),
) -> Cost:
    """Tokens and operations per km2 of kept output, in the middle of a large area.

    Args:
        card: The model.
        grid: The window lattice and the way of stitching.
        periods: Time steps.
        hidden: As for ``window_work``.
        sensors: Sensors that are fed.

    Raises:
        ConfigError: The model does not take a sensor.
    """
    kept_km2 = (grid.stride_px * PIXEL_M / 1000) ** 2 / grid.dense**2
    evaluations = (grid.window_px / grid.stride_px) ** 2
    work = window_work(card, grid, periods, hidden=hidden, sensors=sensors)
    # once per kept cell; a domain keeps a margin besides its core
    student = work.student / (evaluations if grid.stitch != "neighbourhood" else 1.0)
    per_km2 = work * (1 / kept_km2)
    return Cost(
        tokens=tokens_per_window(card, grid, periods, sensors=sensors) / kept_km2,
        flops=(work.total + student) / kept_km2,
        work=Work(**{f.name: getattr(per_km2, f.name) for f in fields(Work)} | {"student": student / kept_km2}),
        evaluations=evaluations,
    )


def _domain_work(
    card: ModelCard, grid: GridSpec, periods: int, *, hidden: int | None, sensors: tuple[str, ...]
) -> Work:
    side, width, box = grid.window_px // grid.patch_px, card.token_width, grid.box_px // grid.patch_px
    sets = band_sets(card, sensors)
    per_cell = periods * sum(len(groups) for groups in sets)
    pooled = card.pooler_depth > 0 and card.output not in POOLED_TOKENS
    after = 1 + card.pooler_depth if pooled else 0  # attention layers that follow the blocks
    gives = [extent(grid, card.depth - 1 - i + after) ** 2 for i in range(card.depth)]  # cells, block by block
    takes = [extent(grid, card.depth - i + after) ** 2 for i in range(card.depth)]
    linear = 2.0 * width**2 * per_cell * sum(2 * t + (2 + 2 * MLP_RATIO) * g for t, g in zip(takes, gives, strict=True))
    seen = (box**2) * per_cell
    attention = 4.0 * width * per_cell * seen * sum(gives)
    pooler = pooler_attention = 0.0
    if pooled:
        read = [extent(grid, card.pooler_depth - i) ** 2 for i in range(card.pooler_depth)]
        among = [extent(grid, card.pooler_depth - 1 - i) ** 2 for i in range(card.pooler_depth)]
        keys = extent(grid, after) ** 2 * per_cell
        for i, (asked, given) in enumerate(zip(read, among, strict=True)):
            queries = asked if i else 0  # the first read's query is one learned vector
            products = 2 * keys + queries + (1 + 2 * MLP_RATIO) * asked + 2 * asked + (2 + 2 * MLP_RATIO) * given
            pooler += 2.0 * width**2 * products
            pooler_attention += 4.0 * width * (asked * seen + given * box**2)
    cells = grid.kept[1] ** 2
    return Work(
        resize=periods * sum(map(sum, sets)) * _resize(grid),
        embed=float(side**2 * periods) * sum(_embed(card, bands, hidden) for groups in sets for bands in groups),
        linear=linear,
        attention=attention,
        pooler=pooler,
        pooler_attention=pooler_attention,
        student=2.0 * width * card.student * cells if pooled and card.output.startswith("student") else 0.0,
    )


def extent(grid: GridSpec, layers: int) -> int:
    """Side, in cells, of what a domain computes where ``layers`` attention layers follow.

    The kept cells and what those layers reach around them, as far as the domain goes.
    """
    side, box, (first, count) = grid.window_px // grid.patch_px, grid.box_px // grid.patch_px, grid.kept
    front, behind = layers * (box // 2), layers * (box - 1 - box // 2)
    return count + min(first, front) + min(side - first - count, behind)


def _embed(card: ModelCard, bands: int, hidden: int | None) -> float:
    """Patch embedding of one token: 64 samples of ``bands``."""
    samples, width = KERNEL_PX**2, card.token_width
    if card.version == "v1":
        return 2.0 * samples * bands * width
    released = card.hidden or (NANO_HIDDEN if width == NANO_WIDTH else HIDDEN)
    return 2.0 * samples * (released if hidden is None else hidden) * (bands + width)


def _resize(grid: GridSpec) -> float:
    """One band of one period: columns (W x W by W x 8n), then rows (8n x W by W x 8n)."""
    if grid.patch_px == KERNEL_PX:
        return 0.0
    samples = grid.window_px * KERNEL_PX // grid.patch_px
    return 2.0 * grid.window_px * samples * (grid.window_px + samples)


def _pooler(card: ModelCard, cells: int, *, tokens: int, kept: int) -> tuple[float, float]:
    """(linear layers, attention) of v1.3's pooler: per layer a read of all tokens, then attention among locations."""
    depth, width = card.pooler_depth, card.token_width
    among = (depth - 1) * cells + kept  # locations that ask other locations
    queries = (depth - 1) * cells + among  # the first read's query is one learned vector
    products = 2 * depth * (tokens + cells) + queries + (1 + 2 * MLP_RATIO) * (depth * cells + among)
    return 2.0 * width**2 * products, 4.0 * width * (depth * cells * tokens + among * cells)
