"""Rewards: what turns a completion into a number, or says why it could not.

    protocol        the interface of a reward: Sample in, Outcome out: Score | NotApplicable | Failure
    registry        builds a Reward from a grader's description (OpenAI's JSON schema); one line per type
    graders         the grader types, one per file; verifier_free/ holds those that use the policy's own probabilities
    user_code       fills the arguments of a user's function by name, and reads what it returns
    sandbox         the processes that run user code, and the limits that the kernel enforces on them
    judges, tasks   libraries that judge answers, and their data sets
    grader_check    `python -m headrace_rewards check`: tries a grader before a job runs

This file imports nothing, so that a host process starts fast.
"""
