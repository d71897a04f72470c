"""Checkpoints on the disk, snapshots in memory, and parity for a rank that is lost."""
