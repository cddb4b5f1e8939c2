"""Offline: data, training and evaluation of the checkpoints that the server loads."""
