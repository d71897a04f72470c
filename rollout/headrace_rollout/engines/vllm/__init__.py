"""vLLM: its engine in a process, its start, and new weights while it runs."""
