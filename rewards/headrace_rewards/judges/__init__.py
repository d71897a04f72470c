"""Judges of our own: what meets a model's text, run in host processes like a user's code.

    rewards/…/maths.py ────┐                       ┌─► math_verify_judge        math-verify
    tasks/verifier.py ─────┼─► judging ─► a host ──┼─► reasoning_gym_judge         reasoning-gym
    tasks/environment.py ──┘   (here)              └─► verifiers_env_judge  verifiers

A judge imports its own library, in the host alone.
"""
