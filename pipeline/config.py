"""Settings: read from YAML, overridden by ``--set a.b=c``, unknown keys refused with the nearest valid one.

Knows nothing of devices or files beyond the configuration file itself. ``recipe`` is the part that decides pixels and
therefore goes into fingerprints; everything else may change between two runs of one store.
"""

from __future__ import annotations

import difflib
from datetime import date  # noqa: TC003  (pydantic reads the annotations)
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_PERIODS = 12
"""Time steps the released encoders were trained with (OlmoEarth: twelve 30-day periods)."""
MAX_CONFIG_BYTES = 1_000_000
MAX_PIXEL_DIMS = 192
"""Widest vector that ``resolution: auto`` writes for every 10 m pixel; wider ones are written once per token."""


SENSOR_ORDER = ("sentinel2_l2a", "sentinel1", "landsat")
"""Order in which sensors are planned, read and encoded, whatever order the user names them in."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SensorSettings(_Section):
    """What every sensor can be told."""

    catalog: str = Field("", description="Catalogue of this sensor, as inputs.catalog; empty: inputs.catalog.")
    collection: str = Field("auto", description="STAC collection; auto: the one of the catalogue's preset.")
    max_candidates: int = Field(24, ge=1, description="Candidates kept per cell and period, best first.")


class Sentinel2Settings(SensorSettings):
    """Sentinel-2 L2A."""

    composite: Literal[
        "scl_first_valid", "scl_best_clear", "first_clear", "rslearn_mosaic", "median", "omnicloudmask"
    ] = Field(
        "scl_first_valid",
        description="scl_first_valid: rank a cell's scenes by their scene classification, first valid pixel; "
        "scl_best_clear: only the clearest scene; first_clear: first pixel that is clear, clouds grown by dilate_px; "
        "rslearn_mosaic: as rslearn does it, by scene cloud cover and coverage; median: of clear pixels; "
        "omnicloudmask: as scl_first_valid with the masks of that model (extra 'cloudmask').",
    )
    max_cloud_pct: float = Field(100.0, ge=0, le=100, description="Scenes above this cloud cover are not candidates.")
    dilate_px: int = Field(
        2, ge=0, le=16, description="first_clear and median: pixels of 20 m that clouds are grown by."
    )
    offset: Literal["auto", "present", "removed"] = Field(
        "auto",
        description="Whether DN hold the +1000 of baseline 04.00: auto asks the item, and the pixels where the item "
        "cannot be trusted.",
    )


class Sentinel1Settings(SensorSettings):
    """Sentinel-1 RTC (gamma0, linear power), IW, VV+VH."""

    composite: Literal["first_valid", "rslearn_mosaic", "median"] = Field(
        "first_valid",
        description="Newest first valid pixel, rslearn's mosaic in the order of the catalogue, or median.",
    )
    orbit: Literal["any", "ascending", "descending"] = Field("any", description="Orbit direction.")


class LandsatSettings(SensorSettings):
    """Landsat 8/9 Collection 2 Level-1 (opt-in: the archive is requester-pays)."""

    composite: Literal["first_valid", "rslearn_mosaic", "median"] = Field(
        "first_valid", description="First valid pixel, least cloudy scene first; rslearn's mosaic; or median."
    )
    max_cloud_pct: float = Field(100.0, ge=0, le=100, description="Scenes above this cloud cover are not candidates.")
    requester_pays: bool = Field(
        default=False, description="Pay for reading s3://usgs-landsat with your AWS credentials."
    )


Sensor = Literal["sentinel2_l2a", "sentinel1", "landsat"]


class InputSettings(_Section):
    """Where scenes come from and how a period becomes one image."""

    sensors: tuple[Sensor, ...] = Field(
        ("sentinel2_l2a",), min_length=1, description="What the model is fed with: sentinel2_l2a, sentinel1, landsat."
    )
    catalog: str = Field(
        "planetary-computer",
        description="'planetary-computer', 'earth-search', 'cdse', the URL of a STAC API, or a file/folder: static "
        "catalogue, ItemCollection JSON, NDJSON or stac-geoparquet. 'A,B': B where A lacks or cannot give an item.",
    )
    period_days: int | Literal["month"] = Field(30, description="Length of a period in days, or calendar months.")
    periods: int | None = Field(
        None,
        ge=1,
        description="Number of periods: of period_days from start (or back from end) when only one date is given, "
        "equal parts of the range when both are.",
    )
    anchor: Literal["start", "end"] = Field(
        "start", description="Where periods are counted from; what is left over makes a shorter one at the other end."
    )
    resampling: Literal["bilinear", "pretrain"] = Field(
        "bilinear",
        description="How coarse bands reach 10 m: bilinear (rslearn, fine-tuned heads), or as in pretraining: 20 m "
        "repeated, 60 m to 40 m bilinear, then repeated.",
    )
    reader: Literal["rasterio", "async-geotiff"] = Field(
        "rasterio", description="What opens files; async-geotiff (extra 'async') falls back to rasterio per file."
    )
    allowed_hosts: tuple[str, ...] = Field(
        (), description="Hosts (or buckets) that scenes may be read from; '.example.org' allows all below; empty: any."
    )
    allow_private_hosts: bool = Field(
        default=False,
        description="Read from loopback, link-local and private addresses too: a server of your own network.",
    )
    sentinel2: Sentinel2Settings = Sentinel2Settings()
    sentinel1: Sentinel1Settings = Sentinel1Settings()
    landsat: LandsatSettings = LandsatSettings()

    @field_validator("sensors")
    @classmethod
    def _in_order(cls, sensors: tuple[Sensor, ...]) -> tuple[Sensor, ...]:
        if len(set(sensors)) != len(sensors):
            raise ValueError(f"a sensor is named twice: {', '.join(sensors)}")
        return tuple(sorted(sensors, key=SENSOR_ORDER.index))

    @field_validator("period_days")
    @classmethod
    def _length(cls, days: int | str) -> int | str:
        if isinstance(days, int) and not 1 <= days <= 366:
            raise ValueError("a period has 1 to 366 days, or is 'month'")
        return days

    def of(self, sensor: str) -> Sentinel2Settings | Sentinel1Settings | LandsatSettings:
        """The settings of one sensor."""
        if sensor == "sentinel1":
            return self.sentinel1
        return self.landsat if sensor == "landsat" else self.sentinel2

    def catalog_of(self, sensor: str) -> str:
        """The catalogue of one sensor."""
        return self.of(sensor).catalog or self.catalog


class EncodeSettings(_Section):
    """The encoder and its window lattice."""

    patch_px: Literal[1, 2, 4, 8] = Field(4, description="Side of a token, 10 m pixels.")
    window_px: int | Literal["auto"] = Field(
        "auto",
        description="Side of a window; auto: the cheapest within the grids that the model's version was trained on.",
    )
    overlap_px: int | Literal["auto"] = Field(
        "auto", description="Overlap of windows; auto: twice margin_px. Give one of the two."
    )
    margin_px: int | Literal["auto"] = Field(
        "auto",
        description="Context on every side of what is kept; auto: half an overlap of 6 tokens (patch 8: 4), at most a "
        "quarter of the largest trained grid.",
    )
    ramp: int | Literal["auto"] = Field(
        "auto",
        description="Tokens over which blended windows fade into each other, which is their overlap; auto: from the "
        "seam that 'earthpress seams MODEL' measured (in store.calibration), else as overlap_px says.",
    )
    stitch: Literal["auto", "blend", "centre", "neighbourhood"] = Field(
        "auto",
        description="How one field is made: overlapping windows blended, the centre of each window, or neighbourhood: "
        "no windows, every token attends to the box around it (v1.2, v1.3); auto: centre for models with absolute "
        "positions (v1, v1.1), neighbourhood for v1.3, else blend.",
    )
    box_px: int | Literal["auto"] = Field(
        "auto",
        description="neighbourhood: side of the box that a token attends to; auto: 16 px, for v1.2 at patch 4 and 8 "
        "32 and 64 px.",
    )
    core_px: Literal["auto", 256, 512, 1024, 2048] = Field(
        "auto",
        description="neighbourhood: side of what one forward pass gives; auto: on a CPU 256, or 512 where the halo is "
        "large; 1024 on CUDA.",
    )
    halo_px: int | Literal["auto", "exact"] = Field(
        "auto",
        description="neighbourhood: context read around that; exact: everything that attention can reach; auto: what "
        "'earthpress reach MODEL' measured (in store.calibration), else exact.",
    )
    dense: Literal[1, 2] = Field(
        1, description="2: encode at shifts of half a patch too, for vectors twice as close (four times the work)."
    )
    output: Literal["auto", "mean", "max", "location", "student", "student64"] = Field(
        "auto",
        description="Vector that is written: mean or max of a patch's tokens; v1.3 also its location tokens (768) and "
        "their student (128) or its first 64 channels; auto: student for v1.3, else mean.",
    )
    resolution: Literal["auto", "pixel", "token"] = Field(
        "auto", description="One vector per 10 m pixel or per token; auto: pixel up to 192 dimensions."
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 on CUDA and on CPUs with AVX512-BF16 or AMX, else float32."
    )
    attention: Literal["auto", "sdpa", "own", "flex", "flash", "efficient", "cudnn", "math", "triton"] = Field(
        "auto", description="Attention kernel; auto: the fastest of this device, measured once per store."
    )
    compile: Literal["auto", "on", "off"] = Field("auto", description="torch.compile; auto: on for CUDA.")
    batch_windows: int | Literal["auto"] = Field("auto", description="Windows per forward pass, fixed per store.")

    def token_px(self, dims: int) -> int:
        """Side of a written vector of ``dims`` numbers in 10 m pixels: 1 or ``patch_px``."""
        wide = dims > MAX_PIXEL_DIMS and self.dense == 1  # shifted tokens lie between the pixels of a token store
        token = self.resolution == "token" or (self.resolution == "auto" and wide)
        return self.patch_px if token else 1

    @model_validator(mode="after")
    def _check(self) -> EncodeSettings:
        patch = self.patch_px
        if isinstance(self.window_px, int) and (self.window_px <= 0 or self.window_px % patch):
            raise ValueError(f"encode.window_px {self.window_px} is not a positive multiple of encode.patch_px {patch}")
        if isinstance(self.overlap_px, int):
            if self.overlap_px < 0 or self.overlap_px % patch:
                raise ValueError(f"encode.overlap_px {self.overlap_px} is not a multiple of encode.patch_px {patch}")
            if isinstance(self.window_px, int) and self.overlap_px >= self.window_px:
                raise ValueError(
                    f"encode.overlap_px {self.overlap_px} must be smaller than encode.window_px {self.window_px}"
                )
            if self.margin_px != "auto":
                raise ValueError("encode.overlap_px and encode.margin_px say the same thing: give one of them")
        if isinstance(self.margin_px, int) and self.margin_px < 0:
            raise ValueError(f"encode.margin_px {self.margin_px} must not be negative")
        self._check_ramp()
        self._check_neighbourhood()
        if isinstance(self.batch_windows, int) and self.batch_windows < 1:
            raise ValueError(f"encode.batch_windows {self.batch_windows} must be at least 1")
        return self

    def _check_ramp(self) -> None:
        if self.ramp == "auto":
            return
        if self.ramp < 0:
            raise ValueError(f"encode.ramp {self.ramp} must not be negative")
        if self.overlap_px != "auto" or self.margin_px != "auto":
            raise ValueError("encode.ramp, encode.overlap_px and encode.margin_px say the same thing: give one of them")

    def _check_neighbourhood(self) -> None:
        patch = self.patch_px
        for name in ("box_px", "halo_px"):
            side = getattr(self, name)
            if isinstance(side, int) and (side < 0 or side % patch):
                raise ValueError(f"encode.{name} {side} is not a multiple of encode.patch_px {patch}")
        windows = ("window_px", "overlap_px", "margin_px", "ramp", "batch_windows")
        boxes = ("box_px", "core_px", "halo_px")
        useless = [f"encode.{name}" for name in windows if getattr(self, name) != "auto"]
        if self.stitch == "neighbourhood" and useless:
            raise ValueError(
                f"{' and '.join(useless)}: these are for windows, and encode.stitch=neighbourhood has none: set "
                "encode.box_px, encode.core_px or encode.halo_px"
            )
        useless = [f"encode.{name}" for name in boxes if getattr(self, name) != "auto"]
        if self.stitch in ("blend", "centre") and useless:
            raise ValueError(f"{' and '.join(useless)} are for encode.stitch=neighbourhood, not for {self.stitch}")
        if self.dense > 1 and self.resolution == "token":
            raise ValueError(
                "encode.dense=2 puts tokens between the pixels of a store of tokens: use encode.resolution=pixel"
            )
        if patch % self.dense:
            raise ValueError(f"encode.dense {self.dense} needs an even encode.patch_px, not {patch}")


class StoreSettings(_Section):
    """The embedding store."""

    tile_px: Literal["auto", 256, 512, 1024, 2048] = Field(
        "auto",
        description="Side of a tile; auto: 2048 on CUDA, on a CPU 512, with neighbourhood attention 1024. Fixed when "
        "the store is created.",
    )
    path: str = Field(
        "",
        description="Folder or object store URL (s3://, gs://, az://) of the store; empty: store.zarr in the output. "
        "Several outputs of other dates may share one: each adds a time step.",
    )
    calibration: str = Field(
        "auto", description="Calibration file (earthpress calibrate); auto: a provisional one, labelled as such."
    )
    quantiser: str = Field(
        "linear",
        pattern=r"^(linear|power|power_raw|per_pixel|pca:[1-9][0-9]{0,3}|float16|float32)$",
        description="How vectors are stored: linear (int8, a scale per dimension), power (AlphaEarth: unit length), "
        "power_raw (as olmoearth_pretrain), per_pixel (a scale per pixel), pca:K (K scores, int8), float16, float32.",
    )
    max_clipped_pct: float = Field(
        1.0, ge=0, le=100, description="More clipped values than this in a shard: the tile fails. Above 0.1: a warning."
    )
    true_colour: bool = Field(
        default=True, description="Keep the true colours of every period at 80 m beside the vectors, for pictures."
    )


class MapSettings(_Section):
    """One map made in the same pass."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")
    head: str = Field(description="File written by 'earthpress probe fit'.")
    instability: bool = Field(
        default=False,
        description="Also write where overlapping windows disagree about the class, and how far their vectors lie "
        "apart: further bands of the map, an error map without labels. Costs no encoder time.",
    )
    probability: bool = Field(
        default=False,
        description="Also write the probability of every class, per cent (softmax of scores, not calibrated).",
    )
    confidence: bool = Field(
        default=False, description="Also write how far the best class is ahead of the second, per cent."
    )


class RunSettings(_Section):
    """How the work is done; decides no pixel."""

    io_threads: int = Field(16, ge=1, le=256, description="Threads that read; measured past the knee at 30 ms latency.")
    encoder_threads: int | Literal["auto"] = Field(
        "auto", description="Single-threaded encoders on a CPU; auto: cores."
    )
    encoders: Literal["auto", "processes", "threads"] = Field(
        "auto",
        description="Encoders on a CPU as processes or threads; auto: processes from 8 encoders on, if the run takes "
        "minutes; the bytes are the same.",
    )
    read_ahead_bytes: int | Literal["auto"] = Field("auto", description="Bytes read ahead; auto: a quarter of memory.")
    max_degraded_pct: float = Field(20.0, ge=0, le=100, description="More degraded tiles than this: exit 65.")
    max_seam_score: float | None = Field(
        None,
        ge=1,
        description="A seam score whose whole interval lies above this: exit 65; null: the report warns above 1.15.",
    )
    max_attempts: int = Field(3, ge=1, description="Attempts at a tile within one run, for errors that may pass.")


class AccountSettings(_Section):
    """Prices."""

    prices: str = Field("", description="Price table (YAML); empty: the packaged configs/prices.yaml.")
    instance: str = Field("", description="Row of the price table; empty: price unknown, USD is null.")


class Settings(_Section):
    """Everything a run needs; ``load`` builds it."""

    bbox: tuple[float, float, float, float] | None = Field(None, description="west, south, east, north, degrees.")
    aoi: str | None = Field(None, description="Vector file of the area (any pyogrio format, GeoParquet).")
    start: date | None = None
    end: date | None = Field(None, description="Exclusive end.")
    output: str | None = None
    model: str | None = Field(None, description="Folder, weights file, Hugging Face id or random:v1.2-nano:SEED.")
    inputs: InputSettings = InputSettings()
    encode: EncodeSettings = EncodeSettings()
    store: StoreSettings = StoreSettings()
    maps: tuple[MapSettings, ...] = ()
    run: RunSettings = RunSettings()
    account: AccountSettings = AccountSettings()

    @field_validator("maps")
    @classmethod
    def _unique_names(cls, maps: tuple[MapSettings, ...]) -> tuple[MapSettings, ...]:
        names = [m.name for m in maps]
        if len(set(names)) != len(names):
            raise ValueError(f"maps have the same name twice: {names}")
        return maps


def load(path: str | None, *, overrides: Iterable[str] = (), values: dict[str, Any] | None = None) -> Settings:
    """Read a configuration file, apply ``a.b=c`` overrides and explicit values, and check everything.

    Args:
        path: YAML file, or None for the defaults.
        overrides: ``key=value`` strings; the value is read as YAML.
        values: Top-level values that win over file and overrides; None values are ignored.

    Raises:
        ConfigError: File missing or not YAML, unknown key (the nearest valid one is named), value out of range.
    """
    data: dict[str, Any] = _read(path) if path else {}
    for text in overrides:
        key, sep, value = text.partition("=")
        if not sep or not key:
            raise ConfigError(f"--set {text!r} is not of the form key=value, e.g. --set encode.patch_px=2")
        try:
            _assign(data, key.strip().split("."), yaml.safe_load(value), text)
        except yaml.YAMLError as err:
            raise ConfigError(f"--set {text!r}: {value!r} is not a YAML value") from err
    data |= {k: v for k, v in (values or {}).items() if v is not None}
    try:
        return Settings.model_validate(data)
    except ValidationError as err:
        raise ConfigError(_explain(err, path)) from err


def _read(path: str) -> dict[str, Any]:
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"configuration file {path} does not exist")
    if file.stat().st_size > MAX_CONFIG_BYTES:
        raise ConfigError(f"configuration file {path} is larger than {MAX_CONFIG_BYTES} bytes")
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as err:
        raise ConfigError(f"configuration file {path} is not YAML: {err}") from err
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"configuration file {path} must hold keys and values, got {type(data).__name__}")
    return data


def _assign(data: dict[str, Any], keys: list[str], value: Any, text: str) -> None:
    node = data
    for key in keys[:-1]:
        node = node.setdefault(key, {})
        if not isinstance(node, dict):
            raise ConfigError(f"--set {text!r}: {key} is not a section")
    node[keys[-1]] = value


def _explain(err: ValidationError, path: str | None) -> str:
    lines = []
    for item in err.errors():
        if item["type"] == "too_short" and item["input"]:
            continue  # the list is not empty: its entries were refused, each with a message of its own
        where = ".".join(str(p) for p in item["loc"]) or "configuration"
        if item["type"] == "extra_forbidden":
            near = _nearest(item["loc"])
            lines.append(f"unknown key {where!r}" + (f"; did you mean {near!r}?" if near else ""))
        else:
            lines.append(f"{where}: {item['msg'].removeprefix('Value error, ')} (got {item['input']!r})")
    return f"{path or 'configuration'}: " + "; ".join(lines)


def valid_keys(model: type[BaseModel] = Settings, prefix: str = "") -> tuple[str, ...]:
    """All dotted keys a configuration may hold."""
    keys: list[str] = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys.extend(valid_keys(field.annotation, f"{prefix}{name}."))
    return tuple(keys)


def _nearest(loc: tuple[int | str, ...]) -> str | None:
    wanted = ".".join(str(p) for p in loc)
    keys = valid_keys()
    close = difflib.get_close_matches(wanted, keys, n=1, cutoff=0.5)
    if close:
        return close[0]
    leaf = {k.rsplit(".", 1)[-1]: k for k in keys}
    close = difflib.get_close_matches(str(loc[-1]), leaf, n=1, cutoff=0.6)
    return leaf[close[0]] if close else None
