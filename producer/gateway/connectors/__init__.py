"""Foreign wires: platforms that speak one of them change an endpoint and a key, nothing else.

One module a wire, each over `adapter`; what a wire's labels, levels or scores mean here is data with reasons.
"""
