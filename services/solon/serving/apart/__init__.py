"""An engine in a process of its own, so that calls and the model do not share an interpreter.

A Python process runs one thread of Python at a time: in the server's own process every call that
is read or answered would hold up the model, and every step of the model the calls. Apart, each has
a core. The processes talk over a socket that both inherit; neither can outlive the other.
"""
