"""The learner worker: claims batches of groups, trains, publishes the weights, settles the step.

worker          a learner's lifecycle; step_loop, its steps; rank_worker for the other ranks
ports           the components that a learner is made of
batch_claims    claims, filters and waits for the groups of a step
algorithms      which tokens contribute, advantages, importance weights, losses
training        one step: forward passes, gradient, figures
models          policy, critic, adapters
optimizers      AdamW and low-rank variants, by name
distributed     several ranks that train one policy
checkpoints     on disk and in memory
recovery        continues where a learner that died left off
"""
