"""Which trained model, and which release: what a comparison is of, and what a registry keeps record of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from harps_dist.frozen import Frozen

if TYPE_CHECKING:
    from harps_dist.data.manifest import Manifest

ID_LENGTH = 12


class TrainedModel(Frozen):
    """A checkpoint of a run. `id` says which weights under which recipe, wherever they lie.

    run: folder that it was read from, as it was given. checkpoint: how it was chosen there. recipe_digest,
    release_digest, git: what it was trained as, on which data, by which commit.
    """

    name: str
    id: str
    run: str
    checkpoint: Literal["newest", "best"]
    step: int
    weights_sha256: str
    recipe_digest: str
    release_digest: str
    git: str | None

    @property
    def folder_name(self) -> str:
        """What a registry calls it."""
        return f"{self.name.replace('/', '-')}-{self.id}"


class ReleaseIdentity(Frozen):
    """A release that models were tried on, and the digest of the one that it grew from. not_genuine: why its real
    spectra may not be called so; '' where they may, or nobody noted it."""

    digest: str
    parent: str | None
    genuine: bool
    description: str
    not_genuine: str = ""

    @classmethod
    def of(cls, manifest: Manifest) -> ReleaseIdentity:
        return cls(
            digest=manifest.digest,
            parent=manifest.parent,
            genuine=manifest.genuine,
            description=manifest.description,
            not_genuine=manifest.not_genuine,
        )
