"""A list as a mode holds it, asked, and the ranking that comes back."""
