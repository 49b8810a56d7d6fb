"""What the STAC catalogue says about everything that is committed."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.run import ground, seam_report
from pipeline.run.folder import credit_of
from pipeline.write import stac

if TYPE_CHECKING:
    from pipeline.run.published import Published
    from pipeline.types import GridSpec, Plan


def catalog_of(plan: Plan, made: Published, seams: seam_report.Seams) -> stac.CatalogContent:
    """What the STAC catalogue says about everything that is committed."""
    grid, name = plan.grid, Path(plan.output).resolve().name
    shared: dict[str, Any] = {
        **seam_report.properties(seams),
        "earthpress:stitch": grid.stitch,
        **_lattice(plan.grid),
        "earthpress:patch_px": grid.patch_px,
        "earthpress:dense": grid.dense,
        "earthpress:recipe": plan.recipe,
        "earthpress:model": f"OlmoEarth {plan.model.version} {plan.model.size}",
        "earthpress:trained": plan.model.trained,
        "earthpress:report": Path(made.page).name,
    }
    untrained = "" if plan.model.trained else " UNTRAINED random weights: for demonstration only."
    return stac.CatalogContent(
        id=re.sub(r"[^A-Za-z0-9._-]+", "-", name),
        title=f"Embeddings {name}",
        description=f"int8 embeddings of OlmoEarth {plan.model.version} {plan.model.size}, one vector per "
        f"{grid.pixel_m} m; {credit_of(plan)}.{untrained}",
        start=plan.periods[0].start,
        end=plan.periods[-1].end,
        items=tuple(
            stac.ZoneItem(box=box, assets=_assets(made, box.zone), properties=tuple(shared.items()))
            for box in ground.extents(plan)
        ),
        software=(("earthpress", version("earthpress")),),
    )


def _lattice(grid: GridSpec) -> dict[str, Any]:
    """The sides of windows, or of boxes and domains."""
    if grid.stitch == "neighbourhood":
        sides = {"box_px": grid.box_px, "core_px": grid.core_px, "halo_px": grid.halo_px}
    else:
        sides = {"window_px": grid.window_px, "overlap_px": grid.overlap_px}
    return {f"earthpress:{name}": side for name, side in sides.items()}


def _assets(made: Published, zone: int) -> tuple[stac.Made, ...]:
    group = f"utm{zone:02d}"
    cogs = [
        path
        for path in (*made.maps, *made.quicklooks)
        if path.endswith(".tif") and re.search(rf"_{group}(?!.*_utm\d\d)", Path(path).stem)
    ]
    store = stac.Made(
        key="embeddings", path=f"{made.store}/{group}", media_type=stac.ZARR, roles=("data",), title="Embedding store"
    )
    return (
        store,
        *(
            stac.Made(
                key=Path(path).stem,
                path=path,
                media_type=stac.COG,
                roles=("data",) if path in made.maps else ("overview",),
                title=Path(path).stem.replace("_", " "),
            )
            for path in cogs
        ),
        stac.Made(
            key="seams", path=made.seams, media_type="application/json", roles=("metadata",), title="Seam scores"
        ),
    )
