"""Examples, labelled or made from plain passages, to a head set."""
