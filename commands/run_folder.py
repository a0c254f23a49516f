"""A new folder for every run."""

from pathlib import Path

from pytorch_lightning.utilities import rank_zero_only


def new_run_folder(runs_dir: str, name: str, subcommand: str) -> Path:
    """Claim a folder that no run has had; other ranks take rank 0's word for it."""
    if name in ("", ".", "..") or Path(name).name != name:
        raise ValueError(f"name must be a folder's name without a path, got {name!r}: use runs_dir for the path")
    parent, number = Path(runs_dir) / name, 0
    while True:
        folder = parent / f"{subcommand}-{number}"
        try:
            if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
                folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1
