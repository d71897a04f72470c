"""The graders, a type a file: its description, and the reward that it makes."""
