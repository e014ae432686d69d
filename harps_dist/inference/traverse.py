"""What one latent node does to a spectrum: its values in turn, all else held (Sect. 3.6, Eq. 15)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harps_dist.errors import ConfigError
from harps_dist.files import atomic_write
from harps_dist.inference.simulated import Request, relative_velocity
from harps_dist.inference.simulator import Simulator
from harps_dist.ownership import OutputKind, check, claimed, first_line, png_file
from harps_dist.spectra.labels import LABEL
from harps_dist.spectra.quantities import expected as possible
from harps_dist.spectra.quantities import in_range

MAX_POINTS = 1000
FIGURE = png_file("figure of a traversal", "-o")
_COLUMNS = re.compile(r"wave_aa,base (\w+)=[^,=]+(,(expected )?\1=[^,=]+)+")
TABLE = OutputKind("table of a traversal", "-o", lambda path: _COLUMNS.fullmatch(first_line(path)) is not None)
UNKNOWN_SPAN = (-2.0, 2.0)  # of an unknown factor: what 95 % of a standard normal prior holds


@dataclass(frozen=True, eq=False)
class Traversal:
    """Spectra of one node's values.

    node: name of a label, or u1, u2, … values: (m,) in the label's unit. base_value: of the node in the base spectrum.
    wave_aa, base: (pixel,). flux: (m, pixel). expected: (m, pixel) the base shifted exactly, for the radial velocity.
    of: what the base is. notes: what was assumed of it.
    """

    node: str
    values: np.ndarray
    base_value: float
    wave_aa: np.ndarray
    base: np.ndarray
    flux: np.ndarray
    expected: np.ndarray | None
    of: str
    model: str
    notes: tuple[str, ...]

    @property
    def headline(self) -> str:
        """One line: what is varied, of what, and how much that changes."""
        change = np.nanmean(np.abs(self.flux - self.base), axis=1).max()
        text = f"do({self.node}) by {self.model} on {self.of}; mean |change| up to {change:.2g}"
        if self.expected is None:
            return text
        missed = np.nanmean(np.abs(self.flux - self.expected), axis=1).max()
        due = np.nanmean(np.abs(self.expected - self.base), axis=1).max()
        return f"{text}, due {due:.2g} (dotted: shifted exactly), mean |decoded − due| up to {missed:.2g}"

    def write(self, figure: Path) -> Path:
        """Write the figure and, beside it, the spectra as CSV; returns the latter's path. Raises as `check_traversal`,
        and where another process writes them."""
        from harps_dist.inference.figures import traversal_figure

        check_traversal(figure)
        unit = LABEL[self.node].unit if self.node in LABEL else "standard deviations"
        axis, (_, (table, _)) = f"{self.node} [{unit}]" if unit else self.node, outputs_of(figure)
        with claimed(figure, FIGURE, (table, TABLE)):
            with atomic_write(table) as aside, aside.open("w", encoding="utf-8") as file:
                file.write(",".join(self.columns()) + "\n")
                np.savetxt(file, np.stack(list(self.columns().values()), axis=1), fmt="%.7g", delimiter=",")
            traversal_figure(
                figure, self.wave_aa, self.base, self.values, self.flux, self.expected, axis, self.headline, FIGURE
            )
        return table

    def columns(self) -> dict[str, np.ndarray]:
        """The CSV's columns: wavelength [Å, air], base, one for every value, and what is expected of it."""
        columns = {"wave_aa": np.round(self.wave_aa, 2), f"base {self.node}={self.base_value:.6g}": self.base}
        for number, value in enumerate(self.values):
            columns[f"{self.node}={value:.6g}"] = self.flux[number]
        for number, value in enumerate(self.values if self.expected is not None else ()):
            assert self.expected is not None
            columns[f"expected {self.node}={value:.6g}"] = self.expected[number]
        return columns


def outputs_of(figure: Path) -> list[tuple[Path, OutputKind]]:
    """All that is written for a traversal."""
    return [(figure, FIGURE), (figure.with_suffix(".csv"), TABLE)]


def check_traversal(figure: Path) -> None:
    """Raises ConfigError or OutputError where no traversal can be written there."""
    if figure.suffix.lower() != ".png":
        raise ConfigError(f"expected a figure's name that ends in .png, got {figure.name!r}. A CSV is written beside.")
    for output in outputs_of(figure):
        check(*output)


def traverse(
    simulator: Simulator,
    node: str,
    base: Request | np.ndarray,
    of: str,
    points: int = 7,
    span: tuple[float, float] | None = None,
) -> Traversal:
    """Decode the values of one node in turn, all others as in the base.

    base: a request of one spectrum, or the (nodes,) that a spectrum is encoded to (an intervention). of: what it is
    called. span: least and largest value; default is what training saw of a label, or UNKNOWN_SPAN.
    Raises ConfigError for a node that the model does not have.
    """
    if node not in simulator.nodes:
        raise ConfigError(f"{simulator.name} has no node {node!r}; it has {', '.join(simulator.nodes)}.")
    if not 2 <= points <= MAX_POINTS:
        raise ConfigError(f"a traversal takes at least 2 points and at most {MAX_POINTS}, got {points}.")
    number = simulator.nodes.index(node)
    nodes = simulator.normalised(base.labels, base.unknown)[0] if isinstance(base, Request) else np.asarray(base)
    low, high = span or simulator.ranges.get(node, UNKNOWN_SPAN)
    quantity = node if node in LABEL else "unknown"
    if not (in_range(quantity, low) and in_range(quantity, high)):
        raise ConfigError(f"{node} cannot run from {low:g} to {high:g}, expected values of {possible(quantity)}.")
    if node in simulator.model.limits:
        least, most = simulator.model.limits[node]
        if low < least or high > most:
            raise ConfigError(
                f"{node} cannot run from {low:g} to {high:g}: beyond {least:g}..{most:g} {simulator.name} draws "
                f"nothing else. Give a --span inside."
            )
    values = np.linspace(low, high, points)
    base_value = float(simulator.physical(nodes)[number])
    varied = np.repeat(nodes[None], points, axis=0)
    varied[:, number] = (values - simulator.offset[number]) / simulator.scale[number]
    drawn = simulator.decode(np.concatenate([nodes[None], varied]))
    expected = None
    if node == "rv":
        expected = simulator.shifted(np.repeat(drawn[:1], points, axis=0), relative_velocity(values, base_value))
    notes = base.notes if isinstance(base, Request) else ()
    return Traversal(
        node, values, base_value, simulator.grid.wave_aa, drawn[0], drawn[1:], expected, of, simulator.name, notes
    )


def nodes_of_file(simulator: Simulator, path: Path) -> tuple[np.ndarray, str]:
    """The (nodes,) that a HARPS file is encoded to, and the name of what was observed.

    Raises SpectrumError where the file is refused or covers too little of the grid, ConfigError for a decoder alone.
    """
    from harps_dist.errors import SpectrumError
    from harps_dist.formats.prepare import prepare
    from harps_dist.formats.readers import read_spectrum
    from harps_dist.formats.records import Refusal

    record = read_spectrum(path)
    spectrum = record if isinstance(record, Refusal) else prepare(record, simulator.grid)
    if isinstance(record, Refusal) or isinstance(spectrum, Refusal):
        raise SpectrumError(f"{spectrum}. Give another file.")
    return simulator.encode(spectrum.standardised[None])[0], record.object or record.dp_id
