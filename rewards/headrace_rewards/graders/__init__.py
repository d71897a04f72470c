"""The grader types, one per file: the type's description (a `GraderSpec`), and the reward that is made from it."""
