"""Calls a user's function and reads what it returns; imported in the processes that run user code."""
