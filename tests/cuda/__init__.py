"""Kernels, in three kinds of process: interpreter, compile gate, operators. See conftest.py."""
