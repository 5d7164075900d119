"""Helpers of tests, scripts and authors of methods: small data and models, forked commands, comparisons of runs."""
