"""libra-tiny: the small bundled guard, made from scratch: its data, tokenizer, n-gram table, training and card."""
