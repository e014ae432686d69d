"""The model card of an export: Markdown with a YAML head, in the form that model hubs read.

Tested in tests/integration/test_exports.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from harps_dist.config import Recipe
from harps_dist.evaluation.calibration import calibrate
from harps_dist.evaluation.calibration_report import calibration_tables
from harps_dist.evaluation.metrics import LabelScore, label_scores
from harps_dist.evaluation.report import Origin, origin_words
from harps_dist.inference.description import Description
from harps_dist.spectra.instrument import named_instrument
from harps_dist.spectra.microturbulence import BIAS, TOO_HIGH_KMS
from harps_dist.text import format_pair, format_value, markdown_table

if TYPE_CHECKING:
    from harps_dist.data.reader import Release
    from harps_dist.inference.calibrate import HeldOut, SplitPredictions

UNCERTAINTY_WORDS = {
    "head": "predicted by the network for every spectrum, under a {likelihood} likelihood",
    "spread": "the spread of the latent nodes that stand for the labels",
    "residuals": "one for all spectra, the root mean square error on the validation split",
    "none": "none",
}
CITATION = """\
```bibtex
@article{cvrcek2024,
  author  = {Cvrček, Vojtěch and Romaniello, Martino and Šára, Radim and Freudling, Wolfram and Ballester, Pascal},
  title   = {Stellar parameter prediction and spectral simulation using machine learning: A systematic comparison of
             methods with HARPS observational data},
  journal = {Astronomy & Astrophysics},
  year    = {2024}
}
```

Please cite this software too (`CITATION.cff` in its repository), and acknowledge ESO where its spectra are used."""


def model_card(
    description: Description, recipe: Recipe, release: Release, tests: Sequence[tuple[HeldOut, SplitPredictions]] = ()
) -> str:
    """README.md of an export. tests: the validation split, and a kind of the test split that the model was tried on."""
    origins = [release_origin(release, tried) for _, tried in tests]
    scores = [_scores(description, tried) for _, tried in tests]
    words = [origin_words(origin, release.manifest.not_genuine) for origin in origins]
    parts = [
        _front_matter(description, release, dict(zip(origins, scores, strict=True))),
        f"# {description.name}, step {description.step:,}",
        _what(description, recipe),
        "## Data",
        _data(description, recipe, release),
        "## Scores",
    ]
    if not tests:
        parts.append("A decoder alone reads no labels; `launch/evaluate.py` scores what it draws.")
    for said, of_kind, (_, tried) in zip(words, scores, tests, strict=True):
        parts += [f"### Test split, {len(tried.labels):,} {said}", _score_table(of_kind)]
    if tests and description.labels:
        parts += ["## Uncertainties", _uncertainties(description)]
        for said, (held, tried) in zip(words, tests, strict=True):
            parts += [f"### Coverage on the test split, {said}", _coverage(description, held, tried)]
    parts += ["## Anomalies", _anomalies(description)]
    parts += ["## Intended use", _use(description), "## Limits", _limits(description, recipe, release)]
    parts += ["## How to use", _how(description), "## Citation", CITATION]
    return "\n\n".join(parts) + "\n"


def release_origin(release: Release, tried: SplitPredictions) -> Origin:
    from harps_dist.evaluation.predicting import origin_of

    return origin_of(tried.kind, release)


def _front_matter(description: Description, release: Release, scores: dict[Origin, list[LabelScore]]) -> str:
    results = [
        {
            "task": {"type": "tabular-regression", "name": f"{score.name} from spectra"},
            "dataset": {
                "type": "harps_dist-release",
                "name": f"{origin} spectra, test split of release {description.calibrated_on[:12]}",
            },
            "metrics": [{"type": "mae", "name": f"MAE [{score.unit}]" if score.unit else "MAE", "value": score.mae}],
        }
        for origin, of_kind in scores.items()
        for score in of_kind
        if score.count
    ]
    instrument = named_instrument(description.grid.instrument).keyword
    head: dict[str, Any] = {
        "library_name": "harps_dist",
        "license": "mit",
        "tags": ["astronomy", "spectroscopy", "stellar-parameters", instrument, description.model["kind"]],
        "datasets": [f"release-{description.release_digest[:12]}"],
        "genuine_spectra": not _not_genuine(description, release),
    }
    if reason := _not_genuine(description, release):
        head["observed_spectra"] = reason
    if results:
        head["model-index"] = [{"name": description.name, "results": results}]
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---"


def _not_genuine(description: Description, release: Release) -> str:
    """Why the observed spectra that it was trained or calibrated on may not be called real; '' where they may."""
    return release.manifest.not_genuine or description.provenance.get("trained_not_genuine") or ""


def _what(description: Description, recipe: Recipe) -> str:
    grid, labels = (
        description.grid,
        ", ".join(f"{label.name} [{label.unit}]" if label.unit else label.name for label in description.labels),
    )
    last_aa, kind = grid.wave0_aa + grid.step_aa * (grid.length - 1), recipe.model.kind.replace("-", " ")
    return (
        f"{'A' if kind[0] not in 'ae' else 'An'} {kind} that {recipe.model.purpose}, after Cvrček et al. (2024), "
        f"recipe `{description.name}` of harps_dist. Labels: {labels or 'none, it is unsupervised'}. Spectra: "
        f"{grid.length:,} pixels of {grid.step_aa} Å from {grid.wave0_aa:.2f} to {last_aa:.2f} Å, in {grid.medium}, "
        f"{grid.frame}, divided by the median of the pixels that carry data."
    )


def _data(description: Description, recipe: Recipe, release: Release) -> str:
    manifest, mix = release.manifest, recipe.data.mix
    real = _observed(manifest.not_genuine)
    same = description.calibrated_on == description.release_digest
    trained = real if same else _observed(description.provenance.get("trained_not_genuine"))
    counts = manifest.counts
    lines = [
        f"- Trained on release `{description.release_digest}`, weights of the mix: {trained} {mix.real:g}, simulated "
        f"spectra {mix.simulated:g}.",
        f"- Scores and calibration: release `{description.calibrated_on}`"
        + ("" if same else ", **another one**")
        + f", {counts.get('real', 0):,} {real}, {counts.get('simulated', 0):,} simulated spectra; a star lies in one "
        f"split alone.",
    ]
    if same and not manifest.genuine_spectra:
        lines.append("- No genuine spectrum had a part in training, calibration or scores.")
    elif same and not manifest.genuine:
        lines.append(f"- Of the observed-like spectra {manifest.genuine_spectra:,} are genuine, as their files say.")
    if same and manifest.fitted and manifest.fitted.counts:
        labels = ", ".join(f"{name} {count:,}" for name, count in manifest.fitted.counts.items())
        lines.append(f"- Of spectra that no catalogue labels, fits gave labels of the training split: {labels}.")
    if manifest.description:
        lines.append(f"- {manifest.description}")
    return "\n".join(lines)


def _observed(not_genuine: str | None) -> str:
    """What the card calls observed spectra; None where it is not known whether they are real."""
    if not_genuine is None:
        return "observed spectra"
    return f"**observed-like** spectra ({not_genuine})" if not_genuine else "genuine HARPS spectra"


def _scores(description: Description, tried: SplitPredictions) -> list[LabelScore]:
    names = tuple(label.name for label in description.labels)
    sigma = {label.name: label.std for label in description.labels}
    return label_scores(tried.truth, tried.labels, names, sigma, tried.stars)


def _score_table(scores: Sequence[LabelScore]) -> str:
    rows = [
        [
            score.name,
            score.unit,
            format_pair(score.mae, score.standard_error),
            format_value(score.standard_error_stars, score.standard_error_stars),
            format_value(score.bias, score.standard_error),
            format_value(score.scatter, score.standard_error),
            f"{score.count:,}",
            f"{score.stars:,}",
        ]
        for score in scores
    ]
    header = ["label", "unit", "MAE", "± by star", "bias", "scatter", "spectra", "stars"]
    return markdown_table(header, rows) if rows else "No labels are read off spectra."


def _uncertainties(description: Description) -> str:
    words = UNCERTAINTY_WORDS[description.uncertainty].format(likelihood=description.likelihood.capitalize())
    header = ["label", *(f"{level:.0%} interval" for level in description.levels), "calibrated on", "spectra", "stars"]
    rows = [
        [
            label.name,
            *(_half_width(factor, label.scale, label.unit) for factor in label.factors),
            label.calibrated_on,
            f"{label.spectra:,}",
            f"{label.stars:,}",
        ]
        for label in description.labels
    ]
    return (
        f"Standard deviations are {words}. The intervals that are given with labels are these times a factor from "
        f"split-conformal calibration on the validation split, in which every star counts once: on new stars like "
        f"those, they hold the truth at least as often as they say. `inf`: too few stars for that level.\n\n"
        f"{markdown_table(header, rows)}\n\n{_by_blanking(description)}{_beyond(description)}"
    )


def _by_blanking(description: Description) -> str:
    if not description.blanked:
        return "Trained without blanked pieces: it cannot predict by blanking (`--samples`)."
    return (
        f"Trained with up to {description.blanked:.0%} of the pieces of a spectrum blanked: `predict --samples 16` "
        f"gives the median over 16 blankings of about {description.blanked / 2:.0%}. Their spread joins the standard "
        f"deviation in quadrature, and the intervals have factors of their own from the same split."
    )


def _beyond(description: Description) -> str:
    """What the calibration says nothing of; '' where real spectra calibrate all labels."""
    if all(label.calibrated_on == "real" for label in description.labels):
        return ""
    return (
        " **Not all of these intervals were calibrated on genuine spectra: on genuine spectra they promise nothing.** "
        "A spectrum that is flagged as anomalous is unlike those that calibrated them."
    )


def _half_width(factor: float, scale: float, unit: str) -> str:
    return f"± {factor:.2f} σ" if np.isnan(scale) else f"± {factor * scale:.3g} {unit}".rstrip()


def _coverage(description: Description, held: HeldOut, tried: SplitPredictions) -> str:
    calibrations = [
        calibrate(
            label.name,
            tried.of_label(column, label.scale),
            held.of_label(column).of_label(column, label.scale),
            description.likelihood,
        )
        for column, label in enumerate(description.labels)
        if np.isfinite(tried.truth[:, column]).any()
    ]
    return calibration_tables(calibrations) if calibrations else "None of these spectra has a known label."


def _anomalies(description: Description) -> str:
    facts = description.anomaly
    if facts is None:
        return "This model scores no anomalies."
    text = (
        f"A spectrum's score is its distance from {facts.trained_on:,} training spectra (Mahalanobis) by what "
        f"each of its stretches adds to the labels, and by the power of its structures from wide to narrow"
        if facts.numbers
        else f"A spectrum's score is its distance from {facts.trained_on:,} training spectra among the "
        f"features of the encoder, averaged along the spectrum (Mahalanobis, {facts.components} axes)"
    )
    if facts.orders:
        text += (
            f", or, where that is larger, the largest χ² of its reconstruction in {len(facts.orders)} echelle orders, "
            f"against the spectrum's own noise and the usual misfit of the model there"
        )
    if not np.isfinite(facts.threshold):
        return (
            f"{text}. No threshold: {facts.stars} stars of the validation split ({facts.calibrated_on}) are too few "
            f"for {facts.false_alarms:.0%} of false alarms, so nothing is flagged as anomalous."
        )
    return (
        f"{text}. Above 1 it is flagged, as {facts.false_alarms:.0%} of spectra like those of the validation split are "
        f"({facts.spectra:,} {facts.calibrated_on} spectra of {facts.stars:,} stars, every star counting once)."
    )


def _use(description: Description) -> str:
    if description.model["kind"] == "decoder":
        return "Simulating spectra of single stars within the range of the labels below; see Limits."
    return (
        "Labels of extracted, merged, blaze-corrected HARPS spectra of single stars (ESO Phase 3 products or DRS s1d), "
        "as a first estimate, for sorting an archive, or for finding unusual spectra."
    )


def _limits(description: Description, recipe: Recipe, release: Release) -> str:
    rows = [[label.name, f"{label.low:.5g} … {label.high:.5g}", label.unit] for label in description.labels]
    text = markdown_table(["label", "range seen in training", "unit"], rows) if rows else ""
    lines = [
        "- Labels outside these ranges are extrapolated, and flagged.",
        f"- Spectra with S/N below {description.snr_low:.0f} are rarer in training than 1 %, and flagged.",
        "- Intervals hold for stars like those that calibrated them; for others nobody can promise it.",
        "- Another instrument, medium (vacuum) or frame (topocentric) gives wrong labels.",
    ]
    if description.calibrated_on == description.release_digest and not release.manifest.genuine_spectra:
        lines.append("- It has seen simulated spectra alone: on genuine ones errors are larger than any here.")
    if recipe.data.mix.simulated > 0 and release.index.shared("vmic") == TOO_HIGH_KMS:
        lines.append(f"- Its simulated stars all have a microturbulence of {TOO_HIGH_KMS:g} km/s: {BIAS}.")
    return f"{text}\n\n" + "\n".join(lines)


def _how(description: Description) -> str:
    load = "```python\nimport harps_dist\n\nmodel = harps_dist.load('DIR')  # torch and numpy are enough\n"
    if description.model["kind"] == "decoder":
        return f"{load}flux = model.decode(model.normalise(labels))\n```"
    return (
        f"{load}table = model.predict(wave_aa, flux)  # or a specutils Spectrum\n```\n\n"
        "```sh\npython launch/predict.py DIR SPECTRA -o labels.fits\n```"
    )
