"""The same work on many lists and machines (extra `ray`)."""
