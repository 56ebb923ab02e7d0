"""Benchmarks: real processes, real servers, figures beside their bars. Run by `make bench`, never by the test suite.

    python -m tests.benchmarks [NAME …] [--json FILE] [--quick]

Every module of this folder is a benchmark, found by its file name; `kit/` is what they are built on. To add one,
add a module with

    def run(*, quick: bool) -> Iterator[Figure]

which measures and yields `kit.figures.Figure`s, each with its bar (`at_least` or `at_most`) where it has one. Nothing
is registered anywhere. `quick` asks for fewer runs, never for another bar. All of them together take less than
40 minutes on 2 cores, so that one may take three or four; medians of interleaved runs beat one long run on a machine
that others use as well. Nothing is measured at import, and a bar missed is a `Figure` below its bar, not an exception.

`kit.rig.rig()` gives embedded servers in a temporary folder and, by `found.fleet(...)`, a warm fleet of any guard;
`kit.against_bare.fleet_share` compares such a fleet with the bare engine on the same items.
"""
