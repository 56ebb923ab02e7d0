"""What benchmarks are built on: figures, a fleet of real processes, what processes cost, facts of the machine."""
