"""The workers of a placed job: each is supervised, and all of them train and evaluate until the last version."""
