"""The device process: the only code that touches an accelerator, its batcher, and how others talk to it."""
