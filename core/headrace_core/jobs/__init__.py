"""What is stored of a job beside its ledger: record, history, settings, recoveries, rollouts."""
