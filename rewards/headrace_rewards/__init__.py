"""Rewards: what turns a completion into a number, or says why it could not.

    protocol        Sample in, Outcome out: Score | NotApplicable | Failure
    registry        a grader in OpenAI's JSON schema -> Reward; one line a type
    string_check    compares two templates
    functions       a user's Python function, in processes of its own
        supervisor      restarts such a process, and finds the sample that broke it
        processes       one such process, seen from the service
        wire            the frames between the two
        host            the same process, seen from inside: `python -m headrace_rewards.host`
        binding, values how its arguments are filled by name, how what it returns is read
        isolation       what holds it: environment, limits, death with its parent
    check           `python -m headrace_rewards check`: tries a grader before a job runs

This file imports nothing, so that a host process starts fast.
"""
