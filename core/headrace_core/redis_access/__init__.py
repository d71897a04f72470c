"""Redis: the client, names of keys, scripts, records, and when a write is on the disk."""
