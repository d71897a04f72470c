"""Contracts between two services."""
