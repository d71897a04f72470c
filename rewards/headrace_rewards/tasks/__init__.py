"""Tasks of reasoning-gym: as data, and as the verifier that belongs to it.

    reference    `reasoning_gym:chain_sum?size=1000&seed=42` -> which rows are meant
    gym          the one file that imports reasoning-gym: rows, and scores of answers
    make_file    `python -m headrace_rewards tasks`: the rows of a reference, as a file
    answers      where in a completion the answer stands
    verifier     the grader; the verifying itself is done in host processes (judges/task_judge.py)

The library takes seconds to import, evaluates what models write, and meets parameters of users: it is never imported
into the service. This file imports nothing.
"""
