"""Checked Deep Learning: the package behind the book.

- `pkg.algos`: the algorithms, one module per chapter, in plain PyTorch.
- `pkg.cuda`: their GPU kernels in Triton, imported only when a CUDA tensor arrives.
- `pkg.ledger`: states an equation and holds it against its proof and against the code.
- `pkg.data`: real data and real weights, loaded by name.
- `pkg.exercises`: the chapters' exercises, with checkers that run.
- `pkg.plotting`: the house style of the figures.
"""
