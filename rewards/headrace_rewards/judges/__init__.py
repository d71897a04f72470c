"""Judges of our own: what meets a model's text, run in host processes like a user's code.

    rewards/…/maths.py ────┐                       ┌─► maths_judge        math-verify
    tasks/verifier.py ─────┼─► judging ─► a host ──┼─► task_judge         reasoning-gym
    tasks/environment.py ──┘   (here)              └─► environment_judge  verifiers

A judge imports its own library, in the host alone.
"""
