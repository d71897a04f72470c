"""What two services or more share; no torch, vLLM, Ray or FastAPI.

types         values that cross processes: trajectories, staleness, metrics
config        what users and operators set
redis_access  the Redis client, keys and scripts
storage       weights, snapshots, data sets
ledger        every group ends in exactly one state
jobs          records, events and measurements of a job
protocols     contracts between two services
clock         the clock that a component reads; a simulation passes its own
"""
