"""The loop, its batches, and the job that runs one configuration from start to record."""
