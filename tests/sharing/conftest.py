"""Hypothesis in this folder: the same examples at every run, without a deadline, because machines differ in speed."""

from hypothesis import settings

settings.register_profile("sharing", deadline=None, derandomize=True, database=None)
settings.load_profile("sharing")
