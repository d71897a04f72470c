"""Files: weights, snapshots, data sets; writes that are whole or not there; free space."""
