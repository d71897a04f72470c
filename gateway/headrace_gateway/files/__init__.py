"""Uploaded files, the result files of jobs, and files made from a task's rows."""
