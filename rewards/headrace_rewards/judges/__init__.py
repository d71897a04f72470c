"""Judges of our own: what meets a model's text, run in host processes like a user's code.

    graders/math_verify.py ─────┐                         ┌─► math_verify_judge    math-verify
    graders/reasoning_gym.py ───┼─► graders/ ─► a host ───┼─► reasoning_gym_judge  reasoning-gym
    graders/verifiers_env.py ───┘   hosted_judge  (here)  └─► verifiers_env_judge  verifiers

A judge imports its own library, in the host alone.
"""
