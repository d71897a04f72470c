"""A learner of several processes: ranks, shards, and the commands that rank 0 gives."""
