"""Values that cross processes, and the rules that hold for them; no I/O."""
