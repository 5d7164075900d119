"""Build tables from finished runs, beside the paper's numbers. This package reads results only and imports no torch."""
