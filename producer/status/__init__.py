"""`libra status`: the fleet at a glance, and what is wrong with it."""
