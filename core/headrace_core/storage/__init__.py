"""Files: weights, snapshots, data sets, atomic writes, free disk space."""
