"""Faults to inject: damaged bytes, delayed answers of Redis, small disks."""
