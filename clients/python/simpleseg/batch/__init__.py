"""Many images from files: what `simpleseg batch` does.

``source`` reads what is to be asked, ``journal`` keeps the answers, ``run`` asks for those that are
missing, ``coco`` makes a data set of them.
"""


class BatchError(Exception):
    """The run cannot begin or go on; the message is one line for the user."""
