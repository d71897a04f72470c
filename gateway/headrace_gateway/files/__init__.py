"""Uploaded files, result files, and files of tasks."""
