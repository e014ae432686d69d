"""Whether a spectrum was taken by a telescope, as far as its file says."""

from __future__ import annotations

import re
from collections.abc import Iterable

_SIMULATED = re.compile("simul|synth|mock", re.IGNORECASE)
_OURS = "harps_dist"
_CARDS = "SIM "  # of what `harps_dist.inference.spectrum_files` writes


def simulated_by(origin: str, software: str, cards: Iterable[str]) -> str:
    """What in a header says that no telescope took the spectrum, '' where nothing does.

    origin, software: its ORIGIN and PROCSOFT. cards: names of all its cards. Genuine files have ORIGIN 'ESO' or, from
    the DRS, 'TEST', and cards such as ESO INS SWSIM, which say nothing of the kind.
    """
    if _SIMULATED.search(origin):
        return f"ORIGIN = {origin}"
    if software.lower().startswith(_OURS):
        return f"PROCSOFT = {software}"
    return next((f"HIERARCH {card}" for card in cards if card.startswith(_CARDS)), "")
