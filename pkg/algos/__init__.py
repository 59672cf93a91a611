"""The algorithms of the book: one module per chapter, plain PyTorch, any device, differentiable."""
