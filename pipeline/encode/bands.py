"""Bands of the sensors and the constants that bring them to the numbers the encoder was trained on.

Source: ``olmoearth_pretrain_minimal/olmoearth_pretrain_v1/data/norm_configs/computed.json`` (package
olmoearth-pretrain-minimal 0.1.5, keys ``mean`` and ``std``); the table is the same for every model version. The rule is
``y = (x - (mean - 2 std)) / (4 std)``, not clipped. ``x`` is for Sentinel-2 a harmonised DN (reflectance * 10000,
offset removed), for Sentinel-1 decibels, for Landsat a Collection 2 Level-1 DN. A missing value is 0 AFTER normalising
(what band dropout showed the models from v1.1 on), which is not the mean (0.5); v1, trained without dropout, first
takes the value of the band nearest in wavelength.
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

V1_SPLITS = {"sentinel2_l2a": (4, 6, 2), "sentinel1": (2,), "landsat": (1, 10)}
"""Bands per band set of v1, in the order of ``DEFAULT_BANDS``."""

MEAN_STD = {
    "sentinel2_l2a": {
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
    },
    "sentinel1": {
        "vv": (-11.648990747328444, 10.840350299936597),
        "vh": (-17.745436133270044, 10.216274681392647),
    },
    "landsat": {
        "B1": (11000.959519415692, 7857.9205791510285),
        "B2": (10493.416292898208, 7872.392135393957),
        "B3": (10146.318478942761, 7676.2774595217115),
        "B4": (10236.446029167704, 8038.218121686258),
        "B5": (14427.021492873682, 9302.431605916356),
        "B6": (12164.08145353199, 7442.390533225441),
        "B7": (9712.032951062303, 6037.712185433222),
        "B8": (10132.090998288624, 7788.7282476413675),
        "B9": (4585.469566989013, 2549.745355740949),
        "B10": (21347.89356940543, 10957.2815012006),
        "B11": (19686.23205859348, 9911.421224126807),
    },
}
"""(mean, standard deviation) of each sensor's bands, in the units of the module's docstring."""

WAVELENGTH_NM = {
    "sentinel2_l2a": (
        {
            "B01": 443,
            "B02": 490,
            "B03": 560,
            "B04": 665,
            "B05": 705,
            "B06": 740,
            "B07": 783,
            "B08": 842,
            "B8A": 865,
            "B09": 945,
            "B11": 1610,
            "B12": 2190,
        },
    ),
    "sentinel1": (),
    "landsat": (
        {"B1": 443, "B2": 482, "B3": 561, "B8": 590, "B4": 655, "B5": 865, "B9": 1373, "B6": 1609, "B7": 2201},
        {"B10": 10_900, "B11": 12_000},
    ),
}
"""Central wavelengths, nm, by group within which v1 fills a missing band (``data/missing_bands.py`` of that
package)."""


def scale_offset(band: str, *, sensor: str = "sentinel2_l2a") -> tuple[float, float]:
    """(scale, offset) of a band: normalised value = value * scale + offset.

    >>> scale, offset = scale_offset("B02")
    >>> round(MEAN_STD["sentinel2_l2a"]["B02"][0] * scale + offset, 12)
    0.5
    """
    mean, std = MEAN_STD[sensor][band]
    return 1.0 / (4.0 * std), 0.5 - mean / (4.0 * std)


def substitutes(sensor: str, band: str) -> tuple[str, ...]:
    """Bands that v1 takes for a missing one, nearest wavelength first, the shorter one of two equally near.

    >>> substitutes("sentinel2_l2a", "B09")[:2]
    ('B8A', 'B08')
    """
    for group in WAVELENGTH_NM[sensor]:
        if band in group:
            others = (name for name in group if name != band)
            return tuple(sorted(others, key=lambda name: (abs(group[name] - group[band]), group[name])))
    return ()
