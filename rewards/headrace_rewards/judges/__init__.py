"""Functions that host processes load by path, as they load a user's: what they judge with meets text of a model's.

This file imports nothing: a judge imports its own library, in the host alone.
"""
