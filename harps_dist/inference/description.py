"""What config.json says of an exported model: plain dataclasses, checked without any other package.

Numbers that are not finite are null (NaN), "inf" and "-inf", so that the file is strict JSON.
"""

from __future__ import annotations

import json
import math
import types
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from harps_dist.errors import ExportError
from harps_dist.sealed import sealed, unsealed
from harps_dist.spectra.grid import Grid
from harps_dist.spectra.instrument import HARPS, named_instrument

FORMAT, FORMATS = 2, (1, 2)  # the first carries no digest of its content
Uncertainty = Literal["head", "spread", "residuals", "none"]
_NAN = float("nan")
WEIGHTS, CONFIG, REFERENCE, CARD = "model.safetensors", "config.json", "reference.safetensors", "README.md"


@dataclass(frozen=True)
class GridFacts:
    """Lattice pixels of the model's grid, and which wavelengths [Å] they are: in air, barycentric.

    instrument: whose lattice it is.
    """

    name: str
    start: int
    length: int
    wave0_aa: float
    step_aa: float
    medium: str
    frame: str
    instrument: str

    def grid(self) -> Grid:
        """The grid; raises GridError for an instrument that this code does not know."""
        return Grid(self.name, self.start, self.length, named_instrument(self.instrument))


@dataclass(frozen=True)
class LabelFacts:
    """A label, in the order of the model's outputs.

    mean, std: physical = mean + std · normalised. low, high: what the training split holds, or is drawn from. scale:
    standard deviation [unit] for all spectra, NaN where the model predicts one. factors: half-width of the calibrated
    interval of every level in standard deviations; infinite where too few stars calibrate it. calibrated_on: the
    origin of these spectra of the validation split, with so many stars and spectra that have the label.
    sampled_factors: as factors, of predictions by blanking; empty for a model that never saw blanked pieces.
    """

    name: str
    unit: str
    mean: float
    std: float
    low: float
    high: float
    scale: float
    factors: tuple[float, ...]
    calibrated_on: str
    stars: int
    spectra: int
    sampled_factors: tuple[float, ...] = ()


@dataclass(frozen=True)
class AnomalyFacts:
    """What the anomaly score is made of; see `anomaly`. Its arrays lie in reference.safetensors.

    components: axes of the features' Gaussian that have a variance of their own, trained_on so many spectra.
    distance_scale, excess_scale: what
    1 - false_alarms of the validation spectra stay below; excess_scale is NaN for a model that does not reconstruct.
    orders: numbers of the echelle orders. threshold: of the larger of distance and excess, each over its scale;
    infinite where too few stars calibrate it. numbers: of a fingerprint, 0 where there is none; its distance over
    likeness_scale then stands for the features'.
    """

    components: int
    trained_on: int
    distance_scale: float
    orders: tuple[int, ...]
    excess_scale: float
    threshold: float
    false_alarms: float
    calibrated_on: str
    stars: int
    spectra: int
    numbers: int = 0
    likeness_scale: float = 0.0


@dataclass(frozen=True)
class Description:
    """Everything about a model but its weights.

    model: the fields of its recipe's `model`. uncertainty: where standard deviations come from: a head of the network,
    the spread of its latent nodes, or the residuals of the validation split. likelihood: their shape. snr_low: S/N that
    99 % of the training spectra exceed. release_digest: of the manifest of the release it was trained on, calibrated_on
    of that which calibrated it. provenance: versions and revision of the training. sha256: of the files beside this.
    blanked: largest share of the pieces of a spectrum that training set to the continuum; 0 for a model that saw none.
    """

    format: int
    name: str
    step: int
    model: dict[str, Any]
    grid: GridFacts
    labels: tuple[LabelFacts, ...]
    levels: tuple[float, ...]
    uncertainty: Uncertainty
    likelihood: Literal["gaussian", "laplace"]
    anomaly: AnomalyFacts | None
    snr_low: float
    recipe_digest: str
    release_digest: str
    calibrated_on: str
    provenance: dict[str, Any]
    sha256: dict[str, str]
    blanked: float = 0.0

    @property
    def id(self) -> str:
        """sha256 of the weights."""
        return self.sha256[WEIGHTS]


def to_json(description: Description) -> str:
    """The text of config.json, with a digest of all of it."""
    content = sealed(_strict(asdict(description)))
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def from_json(text: str, name: str) -> Description:
    """What config.json says; raises ExportError, naming the field, where it is not as `Description` has it."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ExportError(f"{name} is damaged: {error}. Export the run again.") from None
    found = content.get("format") if isinstance(content, dict) else None
    if found not in FORMATS:
        raise ExportError(
            f"{name} has format {found!r}, this code knows {FORMAT}. Export the run again, or update harps_dist."
        )
    try:
        content = unsealed(content, required=found > 1)
    except ValueError as error:
        raise ExportError(f"{name} was edited or damaged: {error}. Export the run again.") from None
    if found == 1 and isinstance(content.get("grid"), dict):  # written when there was one instrument
        content["grid"] = content["grid"] | {"instrument": HARPS.name}
    return _checked(Description, content, name)


def _strict(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    if isinstance(value, dict):
        return {key: _strict(inner) for key, inner in value.items()}
    return [_strict(inner) for inner in value] if isinstance(value, list | tuple) else value


def _checked(kind: Any, value: Any, where: str) -> Any:
    """The value as the annotated type; raises ExportError naming where it stands."""

    def wrong(expected: str) -> ExportError:
        return ExportError(f"{where} should be {expected}, got {str(value)[:60]!r}. Export the run again.")

    origin, inner = get_origin(kind), get_args(kind)
    if is_dataclass(kind) and isinstance(kind, type):
        names = {field.name for field in fields(kind)}
        needed = {field.name for field in fields(kind) if field.default is MISSING}  # others came later
        if not isinstance(value, dict) or not needed <= value.keys() <= names:
            raise wrong(f"an object with {', '.join(sorted(names))}")
        hints = get_type_hints(kind)
        return kind(**{name: _checked(hints[name], value[name], f"{where}: {name}") for name in value})
    if origin in (Union, types.UnionType):
        return None if value is None else _checked(inner[0], value, where)
    if origin is Literal:
        if value not in inner:
            raise wrong(f"one of {', '.join(map(str, inner))}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise wrong("a list")
        return tuple(_checked(inner[0], entry, f"{where}[{number}]") for number, entry in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise wrong("an object")
        return {key: _checked(inner[1], entry, f"{where}: {key}") for key, entry in value.items()}
    if kind is float:
        if value is None or value in ("inf", "-inf"):
            return float(value) if value else _NAN
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        raise wrong("a number")
    if kind is not Any and type(value) is not kind:
        raise wrong({int: "a whole number", str: "a text", bool: "true or false"}[kind])
    return value
