"""What runs in a peer's own environment: one module a peer, and the conversation they all have.

These files are started by that environment's Python, where there is no stepwell: they import the
standard library, the peer and, relatively, each other.
"""
