"""The routes, one module for each thing they speak of."""
