"""Work on users' input in processes with limits of memory and time."""
