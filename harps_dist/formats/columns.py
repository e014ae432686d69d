"""What the archive keeps of every row: the columns of its groups, and the names of its arrays of data.

Tested in tests/integration/test_archive.py.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np

from harps_dist.spectra.labels import CATALOGUED, LABEL


class Column(NamedTuple):
    """A value per row. dtype: "f8" (NaN where missing) or "str" ("" where missing)."""

    dtype: str
    unit: str = ""
    note: str = ""


CONTENT = Column("str", note="sha256 of the row's array as `content_of` has it, '' where it was not computed yet")
LABEL_COLUMNS = {name: Column("f8", LABEL[name].unit, f"{LABEL[name].meaning}, catalogue") for name in CATALOGUED}
SCHEMAS: dict[str, dict[str, Column]] = {
    "real": {
        "key": Column("str", note="data product id"),
        "content": CONTENT,
        "source": Column("str", note="file, relative to the ingested folder"),
        "stamp": Column("str", note="size and time of the file, by which a changed one is noticed"),
        "product": Column("str", note="ADP, s1d, S1D_FINAL_A, S1D_A, S1D_FLUXCAL_A or s1d, rewritten"),
        "object": Column("str"),
        "names": Column("str", note="normalised names of the star in the header"),
        "target": Column("str", note="resolved target id, one per star"),
        "catalogue_id": Column("str", note="the star's id in the catalogue of its ingest"),
        "matched_by": Column("str", note="how the catalogue row was found"),
        "prog_id": Column("str"),
        "origin": Column("str", note="ORIGIN of the header"),
        "simulated": Column("str", note="what in the header says that no telescope took it, '' where nothing does"),
        "pipeline": Column("str", note="version; the newest of a data product supersedes the others"),
        "ra": Column("f8", "deg"),
        "dec": Column("f8", "deg"),
        "mjd": Column("f8", "d"),
        "exptime": Column("f8", "s"),
        "snr": Column("f8"),
        "flag": Column("str", note="why no release takes the spectrum, '' where one may"),
        "berv": Column("f8", "km/s", "header"),
        "airmass": Column("f8", "", "header, mean over the exposure"),
        **LABEL_COLUMNS,
    },
    "sed": {
        "key": Column("str", note="id of the SED"),
        "content": CONTENT,
        "source": Column("str"),
        "teff": Column("f8", "K"),
        "mh": Column("f8", "dex"),
        "logg": Column("f8", "dex"),
        "vmic": Column("f8", "km/s"),
    },
    "response": {
        "key": Column("str", note="id of the ETC run"),
        "content": CONTENT,
        "source": Column("str"),
        "sed": Column("str", note="id of the SED the ETC was run with"),
        "airmass": Column("f8"),
        "pwv": Column("f8", "mm"),
        "mag": Column("f8", "mag"),
        "exptime": Column("f8", "s"),
        "snr": Column("f8", "", "median per pixel for its own SED"),
    },
    "generative": {
        "key": Column("str", note="id of the SED"),
        "content": CONTENT,
        "source": Column("str", note="file, relative to the design"),
        "core": Column("str", note="what it varies from: all of a core shares response, velocities and noise"),
        "varied": Column("str", note="the label that varies"),
        "split": Column("str", note="validation or test"),
        "etc_run": Column("str", note="id of the ETC run it is seen through"),
        "teff": Column("f8", "K"),
        "mh": Column("f8", "dex"),
        "logg": Column("f8", "dex"),
        "vmic": Column("f8", "km/s"),
    },
    "withdrawn": {
        "key": Column("str", note="data product id"),
        "pipeline": Column("str", note="version that is withdrawn, with all older ones"),
        "reason": Column("str"),
    },
}
DATA = {"real": "flux", "sed": "flux", "response": "response", "generative": "flux"}
RESPONSE_TERMS = ("mean", "variance", "floor")


def content_of(data: np.ndarray) -> str:
    """The first half of the sha256 of an array's float32 values, little-endian, every NaN the same."""
    values = np.asarray(data, "<f4")
    return hashlib.sha256(np.where(np.isnan(values), np.float32(np.nan), values).tobytes()).hexdigest()[:32]
