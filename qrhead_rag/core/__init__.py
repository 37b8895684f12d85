"""The thin scorer: passages, heads and a stock model in; calibrated scores and their evidence out."""
