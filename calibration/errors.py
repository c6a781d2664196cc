"""What can go wrong with the data that a user points at; the message says what, where, what is allowed, what to do."""


class DataError(ValueError):
    """Pictures or activations that cannot be used as they are."""
