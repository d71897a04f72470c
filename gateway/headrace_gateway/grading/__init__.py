"""Checks of graders at submission."""
