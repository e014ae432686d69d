"""What the paper prints: the rows of its tables, by recipe, in its order of rows and columns.

Tested in tests/unit/test_page.py.
"""

from __future__ import annotations

from typing import NamedTuple

from harps_dist.spectra.labels import EXTRINSIC, INTRINSIC

NAN = float("nan")
Pair = tuple[float, float]  # value and its printed error


class PaperRow(NamedTuple):
    """One printed row of Tables 4-6: (value, error) by label, and NMAE by group."""

    legend: str
    labels: dict[str, Pair]
    groups: dict[str, Pair]


def _row(legend: str, *cells: Pair) -> PaperRow:
    """A row in the printed order of columns: teff, mh, logg, All | rv, berv, airmass, All."""
    labels = dict(zip(INTRINSIC, cells[:3], strict=True)) | dict(zip(EXTRINSIC, cells[4:7], strict=True))
    return PaperRow(legend, labels, {"intrinsic": cells[3], "extrinsic": cells[7]})


# fmt: off
PAPER_ROWS = {  # Tables 4-6 (b) and (c), MAE ± its error on the paper's own HARPS test split
    "beta-vae-cnn-u": _row("β-VAE (U*)", (978.0, 13.0), (0.1578, 0.0027), (0.1798, 0.0025), (1.548, 0.013),
        (31.07, 0.27), (16.01, 0.096), (0.181, 0.0019), (1.5751, 0.0074)),
    "cnn-mix": _row("CNN (mix)", (50.21, 0.82), (0.02118, 0.00064), (0.03957, 0.00085), (0.1793, 0.0022),
        (2.375, 0.061), (0.1671, 0.002), (0.01069, 0.00022), (0.0815, 0.001)),
    "ae-real": _row("AE (real)", (50.32, 0.83), (0.02478, 0.00056), (0.03898, 0.00089), (0.1844, 0.0022),
        (1.94, 0.069), (0.1214, 0.0021), (0.00885, 0.00018), (0.0664, 0.0011)),
    "ae-mix": _row("AE (mix)", (49.74, 0.77), (0.02292, 0.00055), (0.04139, 0.00087), (0.1867, 0.0021),
        (1.918, 0.063), (0.1697, 0.0024), (0.0103, 0.00022), (0.0709, 0.0011)),
    "infovae-mix": _row("infoVAE (mix)", (43.68, 0.73), (0.03424, 0.00058), (0.04005, 0.00087), (0.1986, 0.0021),
        (1.967, 0.071), (0.1855, 0.0024), (0.01023, 0.00021), (0.0722, 0.0011)),
    "cnn-etc": _row("CNN (ETC)", (273.1, 4.2), (0.1222, 0.0011), (0.4994, 0.0044), (1.7029, 0.0091),
        (25.43, 0.27), (NAN, NAN), (1.6827, 0.0054), (6.932, 0.016)),
    "cnn-real": _row("CNN 1.00 (real)", (51.27, 0.81), (0.02109, 0.00064), (0.04102, 0.00085), (0.1837, 0.0022),
        (1.994, 0.058), (0.1764, 0.0018), (0.01163, 0.00022), (0.07591, 0.00098)),
    "cnn-real-1pct": _row("CNN 0.01 (real)", (154.4, 5.8), (0.049, 0.0012), (0.0712, 0.0014), (0.3954, 0.0061),
        (4.4, 0.19), (0.7122, 0.0071), (0.06974, 0.00066), (0.2839, 0.0031)),
    "cnn-mix-1pct": _row("CNN 0.01 (mix)", (108.6, 5.6), (0.04468, 0.00081), (0.05083, 0.00098), (0.2984, 0.0051),
        (3.91, 0.14), (0.787, 0.011), (0.04042, 0.00063), (0.2047, 0.0026)),
    "ae-real-1pct": _row("AE 0.01 (real)", (100.2, 1.7), (0.082, 0.0012), (0.0848, 0.0013), (0.4439, 0.0038),
        (5.19, 0.19), (0.4659, 0.0063), (0.07247, 0.00073), (0.3002, 0.0032)),
    "ae-mix-1pct": _row("AE 0.01 (mix)", (75.2, 2.8), (0.02934, 0.00081), (0.0567, 0.0011), (0.2578, 0.0037),
        (3.53, 0.15), (0.3719, 0.0062), (0.05555, 0.00058), (0.221, 0.0026)),
    "beta-vae-u": _row("β-VAE (U)", (986.0, 13.0), (0.1579, 0.0027), (0.1829, 0.0025), (1.563, 0.013),
        (32.15, 0.28), (16.125, 0.097), (0.1827, 0.0019), (1.6056, 0.0075)),
    "infovae-u": _row("infoVAE (U)", (999.0, 13.0), (0.1529, 0.0027), (0.1817, 0.0025), (1.562, 0.013),
        (31.26, 0.28), (16.077, 0.097), (0.181, 0.0019), (1.5811, 0.0075)),
    "beta-vae-mix-u": _row("β-VAE (mix, U)", (1017.0, 13.0), (0.154, 0.0027), (0.186, 0.0025), (1.59, 0.013),
        (31.72, 0.28), (16.265, 0.1), (0.1798, 0.0019), (1.5935, 0.0076)),
    "infovae-mix-u": _row("infoVAE (mix, U)", (990.0, 13.0), (0.1648, 0.0026), (0.1846, 0.0025), (1.583, 0.013),
        (31.81, 0.28), (16.39, 0.1), (0.1809, 0.0019), (1.6017, 0.0076)),
}
# fmt: on


class PrintedTable(NamedTuple):
    """A printed table: what it shows, and its rows by recipe."""

    title: str
    rows: tuple[str, ...]


LABEL_TABLES = {
    "4": PrintedTable(
        "learning paradigms and architectures",
        ("beta-vae-cnn-u", "cnn-mix", "ae-real", "ae-mix", "infovae-mix", "cnn-etc"),
    ),
    "5": PrintedTable(
        "fewer labels, real and mixed data",
        (
            *("cnn-real", "cnn-real-1pct", "cnn-mix", "cnn-mix-1pct"),
            *("ae-real", "ae-real-1pct", "ae-mix", "ae-mix-1pct"),
        ),
    ),
    "6": PrintedTable(
        "labels from unsupervised models",
        ("beta-vae-cnn-u", "beta-vae-u", "infovae-u", "beta-vae-mix-u", "infovae-mix-u"),
    ),
}
DECODERS = {"cnn-dec-etc": "CNN (simulation)", "resnet-etc": "ResNet (simulation)"}
LEGENDS = {name: row.legend for name, row in PAPER_ROWS.items()} | DECODERS
TABLE_7 = {"cnn-dec-etc": (0.0139, 0.0026), "resnet-etc": (0.0064, 0.0011)}  # MAE' on simulated spectra
TABLE_8 = {  # RVIS, and GIS of teff, mh, logg
    "beta-vae-cnn-u": (0.063, NAN, NAN, NAN),
    "ae-real": (0.019, 0.0078, 0.017, 0.036),
    "ae-mix": (0.017, 0.0041, 0.0069, 0.0077),
    "infovae-mix": (0.020, 0.0051, 0.0065, 0.0062),
}
TABLE_9 = {  # ms per spectrum on an RTX 3090 and on one core of a Ryzen 9 3900X; millions of parameters
    "beta-vae-cnn-u": (0.386, 113.8, 7.0),
    "infovae-mix": (3.970, 779.6, 14.0),
    "ae-mix": (3.910, 795.0, 13.3),
    "cnn-mix": (0.190, 38.4, 1.5),
    "cnn-dec-etc": (0.217, 76.3, 1.7),
    "resnet-etc": (3.694, 729.9, 11.6),
}


class SummaryRow(NamedTuple):
    """A row of Table 3: printed MAE of teff, mh and logg, and the recipes whose mean stands beside it here."""

    legend: str
    recipes: tuple[str, ...]
    printed: tuple[float, float, float]


TABLE_3 = (
    SummaryRow("supervised and semi-supervised, all labels", ("cnn-mix", "ae-mix", "infovae-mix"), (50, 0.03, 0.04)),
    SummaryRow("supervised, 1 % of the real labels", ("cnn-real-1pct",), (155, 0.05, 0.07)),
    SummaryRow("semi-supervised, mixed data, 1 %", ("ae-mix-1pct",), (75, 0.03, 0.06)),
    SummaryRow("unsupervised, no label", ("beta-vae-cnn-u", "beta-vae-u", "infovae-u"), (1000, 0.17, 0.18)),
)
