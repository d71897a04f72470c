"""API keys, authentication of requests, and the audit log."""
