"""GPU kernels in Triton and their launchers, one module per chapter.

`pkg.algos` imports a module of this package when a CUDA tensor arrives, and not before. Nothing here
imports `pkg.algos`. Each kernel has one table of its configurations (`CONFIGS`), which the launcher,
the compile gate of the tests and the benchmarks all read.
"""
