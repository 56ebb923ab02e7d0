"""`libra doctor`: looks at servers, machine, settings and fleet, and says what is wrong, why it matters, what to do.

Torch-free; changes nothing.
"""
