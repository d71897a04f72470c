"""Judges of our own: what meets a model's text, run in host processes like a user's code.

    rewards/…/maths.py ──┐                       ┌─► maths_judge   math-verify
                         ├─► judging ─► a host ──┤
    tasks/verifier.py ───┘   (here)              └─► task_judge    reasoning-gym

A judge imports its own library, in the host alone.
"""
