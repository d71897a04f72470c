"""What Redis stores about a job besides its ledger: record, history, settings, recoveries, rollouts."""
