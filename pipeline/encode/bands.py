"""Bands of the sensors and the constants that bring them to the numbers the encoder was trained on.

Source: ``olmoearth_pretrain_minimal/olmoearth_pretrain_v1/data/norm_configs/computed.json`` (package
olmoearth-pretrain-minimal 0.1.5, keys ``mean`` and ``std``); the table is the same for every model version. The rule is
``y = (x - (mean - 2 std)) / (4 std)``, not clipped; ``x`` is a harmonised DN (reflectance * 10000, offset removed).
A missing value is 0 AFTER normalising (what band dropout showed the models from v1.1 on), which is not the mean (0.5).
"""

from __future__ import annotations

SENSORS = ("sentinel2_l2a", "sentinel1", "landsat")
"""Sensors the encoders were trained on; every other modality of a checkpoint was only decoded."""

DEFAULT_BANDS = {
    "sentinel2_l2a": ("B02", "B03", "B04", "B08", "B05", "B06", "B07", "B8A", "B11", "B12", "B01", "B09"),
    "sentinel1": ("vv", "vh"),
    "landsat": ("B8", "B1", "B2", "B3", "B4", "B5", "B6", "B7", "B9", "B10", "B11"),
}
"""Band order of each sensor when a checkpoint's configuration does not list it."""

S2_MEAN_STD = {
    "B01": (1115.8494388252218, 1955.6991794280914),
    "B02": (1188.9412572078477, 1859.1923971769581),
    "B03": (1407.7739105458452, 1727.7387413631088),
    "B04": (1513.0573882432757, 1740.7757298757895),
    "B05": (1890.9893042634167, 1754.7320388511766),
    "B06": (2483.7812315422448, 1622.1172720635755),
    "B07": (2722.728248756412, 1621.8226170190276),
    "B08": (2755.481305028308, 1612.2565699990187),
    "B09": (3269.812554170875, 2651.088425085525),
    "B11": (2562.852607796968, 1441.5471830655151),
    "B12": (1914.1383249044113, 1328.8914382756407),
    "B8A": (2885.570263047681, 1611.3587521042082),
}
"""(mean, standard deviation) of each Sentinel-2 band, harmonised DN."""


def scale_offset(band: str) -> tuple[float, float]:
    """(scale, offset) of a Sentinel-2 band: normalised value = DN * scale + offset.

    >>> scale, offset = scale_offset("B02")
    >>> round(S2_MEAN_STD["B02"][0] * scale + offset, 12)
    0.5
    """
    mean, std = S2_MEAN_STD[band]
    return 1.0 / (4.0 * std), 0.5 - mean / (4.0 * std)
