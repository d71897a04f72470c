"""Tasks of reasoning-gym and environments of verifiers as data; graders/ holds the graders that belong to them.

    task_reference     `reasoning_gym:chain_sum?size=1000&seed=42` -> which rows are meant
    dataset_file       `python -m headrace_rewards tasks`: the rows of a reference, as a file
    file_names         parameters that name files are refused
    gym_dataset        the one file that imports reasoning-gym: rows, and scores of answers
    answer_extraction  where in a completion the answer stands
    verifiers_dataset  the one file that imports verifiers: rows, and scores by rubrics
    verifiers_modules  where an environment is installed

The libraries take seconds to import, evaluate what models write, and meet parameters of users: they are never imported
into the service, and always held as a user's code is. This file imports nothing.
"""
