"""Processes with limited memory and time, for work on users' input."""
