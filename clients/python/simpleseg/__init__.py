"""Client library of the SimpleSeg server: an image and a phrase in, polygons and a mask out."""

__version__ = "0.1.0"
