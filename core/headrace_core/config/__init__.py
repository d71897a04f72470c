"""What users and operators set: of a job, of the service, of reward code."""
