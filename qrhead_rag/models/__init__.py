"""A model and its tokenizer in memory: found, cut to its heads' layers, embedded, shared."""
