"""What the routes answer, as models: the OpenAPI document's account of them.

Nothing is sent through them: `answers.ready` makes the bytes, and tests hold every answer to its model.
"""
