"""The results of a run: its folder, its record and its files."""
