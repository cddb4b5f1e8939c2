"""Engines: what turns an image and an instruction into answer text."""
