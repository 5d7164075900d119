"""The content of `flexlora-doctor`: whether a run could start here (`run_check`), and the list of methods."""
