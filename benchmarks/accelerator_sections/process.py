"""Process of one section: imports first, then waits for its settings, measures, and keeps each row in a file.

python -m benchmarks.accelerator_sections.process SECTION ROWS.json
"""

import importlib
import json
import os
import sys
from pathlib import Path

from benchmarks.accelerator_sections.setting import SIZES, Row, Rows, Setting


def run_section(section: str, file: Path) -> None:
    """Run a section with the settings that one line of the standard input holds.

    Args:
        section: Name of a module of this package.
        file: File for the rows.
    """
    module = importlib.import_module(f"benchmarks.accelerator_sections.{section}")
    line = sys.stdin.readline()
    if not line:
        return
    given = json.loads(line)
    setting = Setting(**given | {"size": SIZES[given["size"]]})

    def write(rows: list[Row]) -> None:
        part = file.with_suffix(".part")
        part.write_text(json.dumps(rows))
        os.replace(part, file)

    module.measure(setting, Rows(write))


if __name__ == "__main__":
    run_section(sys.argv[1], Path(sys.argv[2]))
