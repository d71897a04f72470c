"""API keys, who a request comes from, and the audit log."""
