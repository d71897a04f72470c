"""ASGI middleware around every route: access control, request ids, error responses."""
