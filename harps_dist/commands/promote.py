"""The models in use: `launch/promote.py promote RUN --comparison FOLDER [--gate gate.yaml]`, `rollback`, `list`.

Example: `harps-dist promote promote runs/next --comparison runs/next/comparison`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import tyro


def promote(
    run: tyro.conf.Positional[Path],
    comparison: Path | None = None,
    gate: Path | None = None,
    registry: Path = Path("models"),
) -> int:
    """Make a run's checkpoint the current model, if it passes the gate; exit code 1 where it does not.

    Example: `harps-dist promote promote runs/next --comparison runs/next/comparison`.

    Args:
        run: Folder that train.py wrote.
        comparison: Folder that compare.py wrote: RUN against the current model, or against none before the first.
        gate: YAML or JSON with the lines to pass; harps_dist/promotion/gate.py has the default and all fields.
        registry: Folder of the models in use.
    """
    from harps_dist.console import console_for
    from harps_dist.promotion.gate import read_gate
    from harps_dist.promotion.registry import CURRENT, Registry

    done = Registry(registry).promote(run, comparison, read_gate(gate))
    console = console_for()
    if done is None:
        console.print(f"{run} is the current model of {registry} already; nothing was done.", soft_wrap=True)
        return 0
    if done.verdict:
        console.print(done.verdict.table())
    replaced = f", in place of {done.replaced}" if done.replaced else ""
    console.print(f"promoted {done.model.folder_name}{replaced}: {registry / CURRENT}", soft_wrap=True)
    return 0


def rollback(reason: str = "", registry: Path = Path("models")) -> int:
    """Go back to the model that was current before; given again, further back.

    Example: `harps-dist promote rollback --reason "worse on M dwarfs"`.

    Args:
        reason: Why it is gone back, for the record.
        registry: Folder of the models in use.
    """
    from harps_dist.console import console_for
    from harps_dist.promotion.registry import CURRENT, Registry

    done = Registry(registry).rollback(reason)
    console_for().print(f"back to {done.model.folder_name} from {done.replaced}: {registry / CURRENT}", soft_wrap=True)
    return 0


def history(registry: Path = Path("models")) -> int:
    """What was promoted, refused and rolled back, from what data, by which commit; and what is current.

    Example: `harps-dist promote list --registry models`.

    Args:
        registry: Folder of the models in use.
    """
    from harps_dist.console import console_for
    from harps_dist.promotion.registry import Registry, history_table

    console_for().print(history_table(Registry(registry).settle(), registry))
    return 0


def main() -> int:
    commands: dict[str, Callable[..., int]] = {"promote": promote, "rollback": rollback, "list": history}
    return tyro.extras.subcommand_cli_from_dict(commands, description=__doc__)
