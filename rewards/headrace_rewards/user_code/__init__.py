"""How a user's function is called, and what it may return; imported where user code runs."""
