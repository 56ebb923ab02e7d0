"""`libra up`: a whole fleet on one machine, kept running, with one screen."""
