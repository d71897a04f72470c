"""What changes state: submission, forks, settings, draining, removal."""
