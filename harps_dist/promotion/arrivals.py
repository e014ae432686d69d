"""What has arrived since a model was trained, held against the model: no split of it was ever trained on.

A new model that learned from wrong labels agrees with them. The old one cannot, so it tells when the labels of what has
arrived, or its spectra, are not like those before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from harps_dist.data.manifest import Index, Manifest
from harps_dist.evaluation.significance import mean_by_star
from harps_dist.promotion.comparison import Surprise
from harps_dist.promotion.paired import FEWEST_STARS
from harps_dist.spectra.labels import LABEL


def arrived_rows(index: Index, manifest: Manifest, release_digest: str) -> np.ndarray:
    """Rows (n,) of the real spectra, of all splits, that came after the release of that digest; after the parent where
    it is no ancestor. None for a release that did not grow, or is that one."""
    lineage = (*manifest.ancestors, manifest.digest)
    known = lineage.index(release_digest) if release_digest in lineage else manifest.generation - 1
    rows = index.rows("real")
    return rows[index["generation"][rows] > max(known, 0)] if manifest.ancestors else rows[:0]


def surprises(
    labels: Sequence[str], frozen: Mapping[str, np.ndarray], arrived: Mapping[str, np.ndarray]
) -> list[Surprise]:
    """How much further the old model is off on what has arrived than on stars that it was tested on before.

    frozen, arrived: columns "star", and of each label NAME and NAME_true, as predictions are kept. The independent unit
    is the star; the p-value is that of a one-sided Mann-Whitney test. Labels that fewer than five stars of either have
    are left out.
    """
    from scipy.stats import mannwhitneyu

    surprises_by_label = []
    for name in labels:
        off = []
        for table in (frozen, arrived):
            error = np.abs(table[name] - table[f"{name}_true"])
            known = np.isfinite(error)
            off.append(mean_by_star(error[known], table["star"][known].astype(str)))
        before, now = off
        if min(len(before), len(now)) >= FEWEST_STARS:
            surprises_by_label.append(
                Surprise(
                    label=name,
                    unit=LABEL[name].unit,
                    frozen=float(before.mean()),
                    arrived=float(now.mean()),
                    p_value=float(mannwhitneyu(now, before, alternative="greater").pvalue),
                    stars_frozen=len(before),
                    stars_arrived=len(now),
                )
            )
    return surprises_by_label
