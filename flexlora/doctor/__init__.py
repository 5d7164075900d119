"""What `flexlora-doctor` says: could a run start here (`run_check`), and its list of methods (`method_list`)."""
