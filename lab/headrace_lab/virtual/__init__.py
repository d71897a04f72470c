"""Services in virtual time: an engine, a trainer and a cluster with given speeds."""
