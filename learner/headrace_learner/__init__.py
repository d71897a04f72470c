"""The learner worker: claims batches of groups, trains, publishes the weights, settles the step.

worker          the life of a learner, and the loop of its steps; rank_worker for the other ranks
ports           what a learner is made of
batch_claims    the groups of a step: claimed, filtered, waited for
algorithms      which tokens count, advantages, importance weights, losses
training        one step: forward passes, gradient, figures
models          policy, critic, adapters
optimizers      by name
distributed     several ranks that train one policy
checkpoints     on the disk and in memory
recovery        goes on where a learner that died left off
"""
