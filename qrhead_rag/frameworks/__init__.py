"""What a framework's component is built from: a scorer described by options, conversations cut to a budget."""
