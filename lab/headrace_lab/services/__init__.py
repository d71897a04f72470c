"""Real services as processes: `headrace serve`, the gateway alone, Ray clusters; their jobs; runs of the examples."""
