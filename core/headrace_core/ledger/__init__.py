"""The exactly-once ledger of groups, and which workers are given no more of them."""
