"""Decode kernels in C++: how they are built, loaded and called. Everything works without them."""
