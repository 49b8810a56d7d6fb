"""Domains of neighbourhood attention: the box of a token, what one forward pass gives and what it must read around it.

Without windows nothing is shared between forward passes but their halos, so three sides are to be settled. The box
decides what a token sees and is part of the model's result. The core, whole blocks of 256 px on the lattice of the
zone, decides how much is computed at once and, by where its border lies, the rounding of the last digit. The halo
decides how much of what the core's tokens depend on is there: every layer reaches half a box further, so the exact one
grows with depth. Pure arithmetic.
"""

from __future__ import annotations

from pipeline.errors import ConfigError
from pipeline.plan.flops import S2, cost_per_km2
from pipeline.plan.ramp import exact_halo_px
from pipeline.plan.trained import outside
from pipeline.types import BLOCK_PX, GridSpec, ModelCard

ROTARY = ("v1.2", "v1.3")
"""Versions whose positions are differences: only they give a token a meaning without a window."""
BOX_PX = 16
"""Box of the published mode (v1.3, patch 1 and 2)."""
BOX_PX_V12 = {4: 32, 8: 64}
"""v1.2 by patch: 8 cells, inside the grids it was trained on up to nine periods; 16 px would be 4 and 2 cells."""
CORES_PX = {"cpu": (BLOCK_PX, 512), "cuda": (BLOCK_PX, 512, 1024)}
"""By device, from the smallest: on a CPU small enough that several encoders share a tile, on a GPU large enough that
halos cost little."""
STREAM_BYTES = {"cpu": 2**30, "cuda": 2**33}
"""What the tokens of one domain may take in float32; keys and values of a layer are as many again."""
TILE_PX = 1024
"""Tile on a CPU, so that it holds four of the larger cores."""
MOST_DOMAIN = 2.5
"""A larger core is taken while domains are this many times their core: half and more of the work would be halo."""


def default_box(version: str, patch_px: int) -> int:
    """Side of the box in pixels where the user says nothing.

    >>> [default_box("v1.2", p) for p in (1, 2, 4, 8)], default_box("v1.3", 4)
    ([16, 16, 32, 64], 16)
    """
    return BOX_PX_V12.get(patch_px, BOX_PX) if version == "v1.2" else BOX_PX


def settle_domain(
    card: ModelCard,
    *,
    patch_px: int,
    tile_px: int,
    device: str,
    token_px: int = 1,
    box_px: int | None = None,
    core_px: int | None = None,
    halo_px: int | None = None,
    dense: int = 1,
    per_cell: int = 1,
) -> GridSpec:
    """The lattice of domains.

    Args:
        card: The model.
        patch_px: Side of a token.
        tile_px: Side of a tile.
        device: ``cpu`` or ``cuda``: decides the core where the user does not.
        token_px: As ``GridSpec.token_px``.
        box_px: Side of the box; None: ``default_box``.
        core_px: Side of the core; None: of ``CORES_PX`` the smallest whose halo is bearable; never by the tile, which
            must not decide a vector.
        halo_px: Context on every side of the core, at most what attention can reach; None: all of that.
        dense: As ``GridSpec.dense``.
        per_cell: Tokens of a cell: periods x band sets of all sensors.

    Raises:
        ConfigError: The version has no rotary positions, or box, core or halo are impossible.
    """
    if card.version not in ROTARY:
        raise ConfigError(
            f"encode.stitch=neighbourhood needs rotary positions ({', '.join(ROTARY)}); {card.version} adds the place "
            "in a window to its tokens: use centre or blend"
        )
    box = default_box(card.version, patch_px) if box_px is None else box_px
    if box < 1 or box % patch_px:
        raise ConfigError(f"encode.box_px {box} is not a positive multiple of encode.patch_px {patch_px}")
    exact = exact_halo_px(card, box, patch_px)
    limit = max(exact) if halo_px is None else halo_px
    if limit < 0 or limit % patch_px:
        raise ConfigError(f"encode.halo_px {limit} is not a multiple of encode.patch_px {patch_px}")
    margin = patch_px if patch_px > 1 and token_px == 1 else 0  # interpolation reads one token beyond the core
    front, behind = (min(side, limit) + margin for side in exact)
    cell_bytes = 4 * card.token_width * per_cell / patch_px**2
    core = _core(front + behind, device=device, px_bytes=cell_bytes) if core_px is None else core_px
    if core > tile_px:
        raise ConfigError(
            f"domains have a core of {core} px, larger than store.tile_px {tile_px}, so every tile would compute its "
            f"neighbours too: use store.tile_px={core} or encode.core_px={tile_px}"
        )
    if core + front + behind < box:
        raise ConfigError(f"encode.box_px {box} is larger than a domain of {core + front + behind} px")
    return GridSpec(
        patch_px=patch_px,
        window_px=core + front + behind,
        overlap_px=front + behind,
        tile_px=tile_px,
        token_px=token_px,
        stitch="neighbourhood",
        box_px=box,
        halo_px=front,
        dense=dense,
    )


def _core(halo_px: int, *, device: str, px_bytes: float) -> int:
    """The largest core of a GPU, of a CPU the smallest whose halo is bearable; of those whose tokens fit."""
    fit = [side for side in CORES_PX[device] if (side + halo_px) ** 2 * px_bytes <= STREAM_BYTES[device]]
    sides = fit or list(CORES_PX[device][:1])
    if device != "cpu":
        return sides[-1]
    return next((side for side in sides if (side + halo_px) ** 2 <= MOST_DOMAIN * side**2), sides[-1])


def explain(card: ModelCard, grid: GridSpec, periods: int, *, sensors: tuple[str, ...] = (S2,)) -> str:
    """What to tell the user about a lattice of domains."""
    cost = cost_per_km2(card, grid, periods, sensors=sensors)
    behind = grid.overlap_px - grid.halo_px
    cells = grid.box_px // grid.patch_px
    need = [side + grid.margin_px for side in exact_halo_px(card, grid.box_px, grid.patch_px)]
    exact = grid.halo_px >= need[0] and behind >= need[1]
    reaches = "all that attention reaches" if exact else "less than attention reaches"
    text = (
        f"neighbourhood: every token attends to a box of {grid.box_px} px ({cells} x {cells} tokens of "
        f"{grid.patch_px} px); domains of {grid.core_px} px with a halo of {grid.halo_px} px in the north and west and "
        f"{behind} px in the south and east ({reaches}, and {grid.margin_px} px for interpolation): "
        f"{cost.flops / 1e9:,.3g} GFLOP and {cost.tokens:,.0f} tokens per kept km2"
    )
    box = GridSpec(patch_px=grid.patch_px, window_px=grid.box_px, overlap_px=0, tile_px=grid.tile_px)
    untrained = outside(card.version, box, periods).replace("window", "box", 1)
    return f"{text}\n{untrained}" if untrained else text
