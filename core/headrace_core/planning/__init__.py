"""What a job asks of a cluster: cores and GPUs by process, and bytes by device, computed before anything is loaded."""
