"""The rollout worker: takes leases of groups, samples completions, scores them, and commits the groups.

worker              a worker's lifecycle, and its concurrent tasks
ports               the components that a worker is made of
lease_pool          the leases that a worker holds: taken, renewed, given back; leased_groups commits their groups
weight_sync         keeps the engine at the newest policy version
group_builder       a lease -> a group; completion_sampler samples, reward_scoring and monitored_reward score
evaluation          evaluates one policy version on the validation file
engines             vLLM, and Headrace's own engine on transformers
chat                serves a trained model as a chat
"""
