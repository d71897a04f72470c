"""Data sets made from reasoning-gym's tasks and verifiers' environments; their graders are in `graders`.

    task_reference     parses a reference to rows, such as `reasoning_gym:chain_sum?size=1000&seed=42`
    dataset_file       `python -m headrace_rewards tasks`: writes the rows of a reference to a file
    file_names         rejects parameters that name files
    gym_dataset        the only file that imports reasoning-gym: rows, and scores of answers
    answer_extraction  finds the answer in a completion
    verifiers_dataset  the only file that imports verifiers: rows, and scores by rubrics
    verifiers_modules  finds where an environment is installed

The libraries take seconds to import, evaluate what models write, and get parameters from users. So the service never
imports them: they always run in the sandbox, like a user's code. This file imports nothing.
"""
