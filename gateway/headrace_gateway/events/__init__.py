"""Server-sent event streams of a job's events and measurements."""
