"""HTTP code that all routes share: errors, JSON, pagination, cursors, uploads."""
