"""Keeps a local engine answering: death, hangs, restarts, and requests asked again."""
