"""A real service as a process: gateway, Ray, jobs, their workers, and runs of the examples."""
