"""The exactly-once ledger of groups, and the drains of workers that get no more of them."""
