"""Tasks of reasoning-gym and environments of verifiers: as data, and as the grader that belongs to it.

    reference          `reasoning_gym:chain_sum?size=1000&seed=42` -> which rows are meant
    make_file          `python -m headrace_rewards tasks`: the rows of a reference, as a file
    file_names         parameters that name files are refused
    gym                the one file that imports reasoning-gym: rows, and scores of answers
    answers            where in a completion the answer stands
    verifier           the grader; the verifying itself is done in host processes (judges/reasoning_gym_judge.py)
    environments       the one file that imports verifiers: rows, and scores by rubrics
    environment_names  where an environment is installed
    environment        the grader; the scoring itself is done in host processes (judges/verifiers_env_judge.py)

The libraries take seconds to import, evaluate what models write, and meet parameters of users: they are never imported
into the service, and always held as a user's code is. This file imports nothing.
"""
