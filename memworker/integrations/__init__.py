"""Adapters for other frameworks, one file each, on memworker's public names alone.

Nothing is imported here: a module imports its framework when it is imported
itself, and says how to install it when it is missing.
"""
