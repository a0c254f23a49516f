"""Parts of :mod:`benchmarks.certificates`, which compares bounds with what others have proved."""
