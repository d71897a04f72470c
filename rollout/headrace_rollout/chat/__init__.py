"""A trained model as a chat: completions, one after another or as a stream."""
