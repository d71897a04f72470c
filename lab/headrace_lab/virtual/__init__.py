"""Services in virtual time: an engine, a trainer and a cluster whose speed is told instead of measured."""
