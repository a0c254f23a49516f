"""The paper's claims about large eps, tested by runs of ``cli.py fit``."""
