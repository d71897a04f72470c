"""The controller of a job: the Ray actor that starts its workers, watches and restarts them."""
