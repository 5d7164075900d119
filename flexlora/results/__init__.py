"""The record of a run: its folder, its schema, its files."""
