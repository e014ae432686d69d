"""What a manifest states of its index: counts, errors of the worst samples, means and deviations of labels.

Tested in tests/integration/test_release_content.py.
"""

from __future__ import annotations

import math
from collections import Counter

import numpy as np

from harps_dist.data.manifest import KINDS_WITH_LABELS, Index, LabelStatistics
from harps_dist.spectra.labels import NAMES


def counted(values: np.ndarray) -> dict[str, int]:
    """How often each value occurs, sorted."""
    return dict(sorted(Counter(values.tolist()).items()))


def largest_errors(index: Index) -> dict[str, float]:
    """Error of the worst sample of every kind, in standard deviations of its photon noise."""
    known = ~np.isnan(index["error"])
    kinds = sorted(set(index["kind"][known].tolist()))
    return {kind: float(index["error"][known & (index["kind"] == kind)].max()) for kind in kinds}


def label_statistics(index: Index) -> dict[str, LabelStatistics]:
    """Mean and deviation per label over the training split: real spectra's where a catalogue has it, else simulated
    ones', and without any of these those that fits gave.

    Fits of few stars would narrow the scale of a velocity, say, that simulated spectra draw from a wide range. Sums
    are rounded once, so that they are the same on every machine.
    """
    statistics = {}
    train = {kind: index.rows(kind, "train") for kind in KINDS_WITH_LABELS}
    sources = [index.truths[rows] for rows in train.values()]
    if not len(train["simulated"]):
        sources.append(index.labels[train["real"]])
    for column, name in enumerate(NAMES):
        for labels in sources:
            values = labels[~np.isnan(labels[:, column]), column].tolist()
            if len(values) > 1:
                mean = math.fsum(values) / len(values)
                variance = math.fsum((value - mean) * (value - mean) for value in values) / len(values)
                statistics[name] = LabelStatistics(mean=mean, std=math.sqrt(variance), count=len(values))
                break
    return statistics
