"""The rollout worker: takes leases of groups, samples completions, scores them, and commits the groups.

worker              the life of a worker, and the tasks that it runs side by side
ports               what a worker is made of
lease_pool          the leases that it holds: taken, renewed, given back
weight_sync         keeps the engine at the newest policy version
group_builder       a lease -> a group; completion_sampler samples, reward_scoring and monitored_reward score
evaluation          the validation set under one policy version
engines             vLLM, and our own on transformers
chat                a trained model as a chat
"""
