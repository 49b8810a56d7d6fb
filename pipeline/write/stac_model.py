"""The model as a STAC Item of the Machine Learning Model extension 1.4 (https://github.com/stac-extensions/mlm).

The item has no place: it says what goes into the encoder of this catalogue and what comes out, and which weights they
were. Weights on Hugging Face are linked by commit; others are named by their hash, never by a path of a machine.
Random weights are ``mlm:pretrained`` false and say so in every text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.write.stac import ItemContent, Link, Made
from pipeline.write.stac_fields import FILE, MLM

if TYPE_CHECKING:
    from datetime import datetime

    from pipeline.types import GridSpec, ModelCard, Numerics

UNTRAINED = "UNTRAINED random weights, for demonstration only: what they make means nothing about the ground."
HUB = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)@(?P<commit>[0-9a-f]{40})")
"""Name of a model that was loaded from Hugging Face, see ``encode.checkpoint.load``."""
LICENCES = {name.lower(): name for name in ("Apache-2.0", "MIT", "BSD-3-Clause", "CC-BY-4.0", "CC0-1.0")}
"""SPDX identifiers by the spelling of model cards; any other licence is ``other``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SensorInput:
    """What the encoder takes of one sensor.

    Attributes:
        name: Of the sensor.
        bands: (band, value that becomes 0, value that becomes 1), in the order of the encoder.
    """

    name: str
    bands: tuple[tuple[str, float, float], ...]


def model_item(
    card: ModelCard,
    *,
    grid: GridSpec,
    numerics: Numerics,
    inputs: tuple[SensorInput, ...],
    periods: int,
    span: tuple[datetime, datetime],
) -> ItemContent:
    """The item ``model-VERSION-SIZE-HASH``.

    Args:
        card: Of the model.
        grid: Window lattice: shapes of input and output.
        numerics: Framework and batch.
        inputs: Per sensor.
        periods: Time steps.
        span: Dates of the data that it was used on.
    """
    title = f"OlmoEarth {card.version} {card.size}"
    name = title if card.trained else f"{title} UNTRAINED random weights"
    names = sorted({band for sensor in inputs for band, _, _ in sensor.bands})
    bands = [{"name": band} for band in names]
    properties: dict[str, Any] = {
        "title": name if card.trained else f"UNTRAINED: {title}",
        "description": f"Encoder {title}: {card.depth} blocks, {card.heads} heads, {card.parameters} parameters, patch "
        f"of {grid.patch_px} px; vector '{card.output}' of {card.dims} dimensions."
        + ("" if card.trained else f" {UNTRAINED}"),
        "license": LICENCES.get(card.licence.lower(), "other"),
        "bands": bands,
        "mlm:name": name,
        "mlm:architecture": "Vision Transformer",
        "mlm:framework": "PyTorch",
        "mlm:framework_version": _semantic(numerics.torch),
        "mlm:tasks": ["similarity-search"],
        "mlm:total_parameters": card.parameters,
        "mlm:pretrained": card.trained,
        "mlm:batch_size_suggestion": numerics.batch_windows,
        "mlm:accelerator": "cuda" if numerics.device == "cuda" else "amd64",
        "mlm:accelerator_constrained": False,
        "mlm:accelerator_summary": numerics.device_name,
        "mlm:input": [_input(sensor, grid=grid, numerics=numerics, periods=periods) for sensor in inputs],
        "mlm:output": [_output(card, grid=grid, numerics=numerics)],
        "mlm:hyperparameters": {
            "patch_px": grid.patch_px,
            "window_px": grid.window_px,
            "depth": card.depth,
            "heads": card.heads,
            "width": card.token_width,
        },
        "earthpress:trained": card.trained,
        "earthpress:weights_sha256": card.sha256,
        "earthpress:licence": card.licence or "unknown",
    }
    if not card.trained:
        properties["mlm:pretrained_source"] = None
    return ItemContent(
        id=f"model-{card.version}-{card.size}-{card.sha256[:12]}",
        box=None,
        start=span[0],
        end=span[1],
        assets=(_weights(card, bands=bands),),
        properties=tuple(properties.items()),
        links=_links(card),
        extensions=(MLM, *((FILE,) if card.trained else ())),
    )


def urn(card: ModelCard) -> str:
    """The name of a model that depends on nothing but the model, as in the metadata of the store."""
    return f"urn:olmoearth:{card.version}:{card.size}:sha256:{card.sha256}"


def page_of(card: ModelCard) -> str:
    """Page of the weights on Hugging Face at their commit, "" for weights from elsewhere."""
    found = HUB.fullmatch(card.name)
    return f"https://huggingface.co/{found['id']}/tree/{found['commit']}" if found else ""


def _input(sensor: SensorInput, *, grid: GridSpec, numerics: Numerics, periods: int) -> dict[str, Any]:
    side = grid.window_px
    return {
        "name": sensor.name,
        "bands": [band for band, _, _ in sensor.bands],
        "description": "One image per period; values are not clipped after scaling, missing ones are 0 after it",
        "input": {
            "shape": [numerics.batch_windows, side, side, periods, len(sensor.bands)],
            "dim_order": ["batch", "height", "width", "time", "channel"],
            "data_type": "float32",
        },
        "value_scaling": [
            {"type": "min-max", "minimum": round(low, 6), "maximum": round(high, 6)} for _, low, high in sensor.bands
        ],
        "resize_type": None,
        "pre_processing_function": None,
    }


def _output(card: ModelCard, *, grid: GridSpec, numerics: Numerics) -> dict[str, Any]:
    side = grid.window_px // grid.patch_px
    return {
        "name": "embeddings",
        "tasks": ["similarity-search"],
        "description": f"One vector per patch of {grid.patch_px} px ('{card.output}')",
        "result": {
            "shape": [numerics.batch_windows, side, side, card.dims],
            "dim_order": ["batch", "height", "width", "channel"],
            "data_type": "float32",
        },
        "classification:classes": [],
        "post_processing_function": None,
    }


def _weights(card: ModelCard, *, bands: list[dict[str, Any]]) -> Made:
    """The one asset: the role ``mlm:model`` and ``mlm:artifact_type`` are required."""
    page = page_of(card)
    fields: dict[str, Any] = {
        "mlm:artifact_type": "torch.save" if card.trained else "random",
        "bands": bands,
        "earthpress:weights_sha256": card.sha256,
    }
    if card.trained:
        fields["file:checksum"] = f"1220{card.sha256}"  # a multihash: 0x12 is sha2-256, 0x20 its 32 bytes
    return Made(
        key="weights",
        path=page or urn(card),
        media_type="text/html" if page else "",
        roles=("mlm:model", "mlm:weights"),
        title=f"Weights, sha256 {card.sha256}" if card.trained else f"{UNTRAINED} Generator {card.name}",
        fields=tuple(fields.items()),
    )


def _links(card: ModelCard) -> tuple[Link, ...]:
    page = page_of(card)
    return (Link(rel="about", href=page, media_type="text/html", title="Model on Hugging Face"),) if page else ()


def _semantic(version: str) -> str:
    """A version as the extension wants it (https://semver.org): three numbers, what follows after ``+``.

    >>> _semantic("2.13.0"), _semantic("2.9.0a0")
    ('2.13.0', '2.9.0+a0')
    """
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", version)
    if found is None:
        return "0.0.0"
    rest = re.sub(r"[^0-9A-Za-z.-]+", "", version[found.end() :]).strip(".")
    return f"{found[1]}.{found[2]}.{found[3] or 0}" + (f"+{rest}" if rest else "")
