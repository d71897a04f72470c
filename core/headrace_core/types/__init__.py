"""Values that cross processes, and the rules for them; no I/O."""
