"""Runs: what is written to the tracking server, kept while it is away, and read again."""
