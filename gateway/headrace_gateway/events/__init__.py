"""A job's events and measurements as streams."""
