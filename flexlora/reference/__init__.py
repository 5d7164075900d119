"""Pages of the documentation that are generated from the settings, the methods and the docstrings."""
