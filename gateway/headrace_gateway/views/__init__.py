"""Builds the response objects from stored records; reads only."""
