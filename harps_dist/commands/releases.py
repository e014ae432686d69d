"""The release that a command works on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harps_dist.data.reader import Release
    from harps_dist.data.stores import Cache
    from harps_dist.ranks.world import World
    from harps_dist.runs.run import Run


def open_release(world: World, location: str, cache: Cache | None = None) -> Release:
    """Open a release on every rank.

    location: a folder, a URL, or "demo", the embedded one, which the main rank builds where it is missing. cache: where
    shards of a release elsewhere are kept. Raises ReleaseError, on all ranks, where it cannot be opened.
    """
    from harps_dist.data.reader import Release
    from harps_dist.data.stores import Cache
    from preprocessing.demo import resolve_release

    return Release(world.of_main(lambda: resolve_release(location)), cache or Cache())


def release_for(run: Run, instead: str | None, world: World) -> Release:
    """The release that a run was trained on, or another `instead`."""
    data = run.recipe.data
    return open_release(world, instead or data.release, data.cache)
