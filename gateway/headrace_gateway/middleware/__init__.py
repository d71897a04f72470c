"""What runs around every route."""
