"""`libra guards check`: does a checkpoint answer as its family should? Asked of a real device process. Torch-free."""
