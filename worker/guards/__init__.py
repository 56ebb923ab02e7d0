"""Guards turn items into prompt ids and a device's numbers into verdicts. They know no tensors."""
