"""A ranking for people: page, terminal, picture."""
