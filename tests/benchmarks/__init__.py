"""Benchmarks: real processes, real servers, figures beside their bars. Run by `make bench`, never by the test suite."""
