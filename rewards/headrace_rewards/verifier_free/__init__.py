"""Rewards without a verifier: what a policy makes of a reference answer, of its own doubts, or of its own majority.

base             what they share: what is measured, and the grader of evaluations
verifree, jepo, latro, rlpr             the likelihood of the reference answer after the reasoning
majority_vote, self_certainty, entropy  no reference answer at all
"""
