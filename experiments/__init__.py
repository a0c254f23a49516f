"""One folder per experiment: configs, code, outputs, verdict. Nothing outside imports from here."""
