"""What all routes share of HTTP: errors, JSON, pages, cursors, uploads."""
