"""Faster equal forms of layers, and the arithmetic that they run in, with torch alone."""
