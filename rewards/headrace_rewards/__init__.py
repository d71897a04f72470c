"""Rewards: what turns a completion into a number, or says why it could not.

    protocol        Sample in, Outcome out: Score | NotApplicable | Failure
    registry        a grader in OpenAI's JSON schema -> Reward; one line a type
    graders         the types, one a file; verifier_free/ has those that use what the policy itself measured
    user_code       how a function's arguments are filled by name, how what it returns is read
    sandbox         the processes that run user code, and what holds them
    judges, tasks   libraries that judge answers, and the data sets that belong to them
    grader_check    `python -m headrace_rewards check`: tries a grader before a job runs

This file imports nothing, so that a host process starts fast.
"""
