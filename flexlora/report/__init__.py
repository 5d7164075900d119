"""Tables from finished runs, beside the paper's numbers. Reads results only: it imports no torch."""
