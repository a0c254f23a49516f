"""Everything that ``cli.py`` does: options and error messages, run folders, resuming, evaluate and export."""
