"""Headrace's own judges, which parse a model's text. They run in sandboxed host processes, like a user's code.

    graders/math_verify.py ─────┐                         ┌─► math_verify_judge    math-verify
    graders/reasoning_gym.py ───┼─► graders/ ─► a host ───┼─► reasoning_gym_judge  reasoning-gym
    graders/verifiers_env.py ───┘   hosted_judge  (here)  └─► verifiers_env_judge  verifiers

Only the host process imports a judge and its library.
"""
