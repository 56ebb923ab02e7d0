"""`libra capacity`: how many devices a rate needs, by what was measured, and what else it will meet."""
