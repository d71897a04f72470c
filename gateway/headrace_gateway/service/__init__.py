"""`headrace serve`: Redis, Ray, exporters and the HTTP server, started and kept alive."""
