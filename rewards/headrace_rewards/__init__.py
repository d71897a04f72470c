"""Rewards: what turns a completion into a number, or says why it could not.

    protocol        Sample in, Outcome out: Score | NotApplicable | Failure
    registry        a grader in OpenAI's JSON schema -> Reward; one line a type
    string_check    compares two templates; text_similarity says how alike they are
    multi, formula  one number from several graders
    verifier_free   rewards of what the policy itself measured: a reference answer's likelihood, its own doubts
    functions       a user's Python function, in processes of its own
    python_source   the same of source text, as OpenAI's `python` grader has it
    sandbox         those processes, and what holds them
    binding, values how a function's arguments are filled by name, how what it returns is read
    check           `python -m headrace_rewards check`: tries a grader before a job runs

This file imports nothing, so that a host process starts fast.
"""
