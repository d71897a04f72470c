"""A learner of several processes: ranks, shards, and the commands of rank 0."""
