"""The server on Ray Serve: front ends and engines as replicas of their own.

``application`` says what is deployed, ``front`` is the engine that a front end sees, ``replica``
what holds a real one, ``frames`` what passes between them.
"""
