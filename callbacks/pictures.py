"""Draw without ever ending a run."""

from collections.abc import Iterator
from contextlib import contextmanager

from pytorch_lightning.utilities import rank_zero_warn


@contextmanager
def warn_if_not_drawn(what: str) -> Iterator[None]:
    """Turn any error into one line of warning: no run is worth less than its pictures.

    Args:
        what: Names the picture.
    """
    try:
        yield
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        rank_zero_warn(f"{what} could not be drawn, the run goes on: {type(error).__name__}: {reason}")
