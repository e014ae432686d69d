"""Labels that arrive wrong surprise the model that never saw them."""

from __future__ import annotations

import numpy as np
import pytest

from harps_dist.promotion.arrivals import surprises
from harps_dist.promotion.gate import Gate
from tests.made_up_models import comparison, entry, write_model


def table(stars: int, error: float, seed: int) -> dict[str, np.ndarray]:
    """Two spectra of each star, predictions off by a half-normal error of that mean."""
    draw = np.random.default_rng(seed)
    truth = draw.uniform(4500, 6500, 2 * stars)
    off = np.abs(draw.normal(0, error * (np.pi / 2) ** 0.5, 2 * stars))
    return {"star": np.repeat(np.arange(stars), 2).astype(str), "teff_true": truth, "teff": truth + off}


def test_figures_are_those_of_stars():
    frozen, arrived = table(30, 50, 1), table(42, 400, 2)
    arrived["teff_true"][:4] = np.nan  # two stars without a label
    (found,) = surprises(["teff"], frozen, arrived)
    by_star = np.abs(frozen["teff"] - frozen["teff_true"]).reshape(-1, 2).mean(axis=1)
    assert found.frozen == pytest.approx(by_star.mean())
    assert (found.stars_frozen, found.stars_arrived) == (30, 40)
    assert found.arrived > 3 * found.frozen  # 8 times in truth, 6 deviations away
    assert found.p_value < 1e-4
    assert surprises(["teff"], frozen, table(4, 400, 3)) == []


@pytest.mark.parametrize(
    ("error", "limit", "passed"), [(50, 2.0, True), (400, 2.0, False), (400, None, True), (400, 100.0, True)]
)
def test_the_gate_refuses_what_surprises(error, limit, passed, tmp_path):
    new, old = (write_model(tmp_path / str(seed), seed) for seed in (1, 2))
    found = comparison(new, old, entry()).model_copy(
        update={"surprises": tuple(surprises(["teff"], table(30, 50, 1), table(12, error, 2)))}
    )
    verdict = Gate(surprise=limit, lines=()).judge(found)
    assert verdict.passed == passed
    if not passed:
        (failure,) = verdict.failures
        assert "teff of what has arrived" in failure.sentence
        assert failure.excess > 0


def test_what_may_be_chance_passes(tmp_path):
    new, old = (write_model(tmp_path / str(seed), seed) for seed in (1, 2))
    (found,) = surprises(["teff"], table(30, 50, 1), table(12, 400, 2))
    lucky = comparison(new, old, entry()).model_copy(update={"surprises": (found.model_copy(update={"p_value": 0.2}),)})
    assert Gate(lines=()).judge(lucky).passed
