"""Reference implementations in PyTorch, for tests only ("twins").

A twin is a second implementation of a published model or method, written from a written
specification of the authors' equations and conventions and never from this project's own code. A
test runs the same numbers through a twin and through the project and compares the results, so the
twins favour plainness over speed: no compiled parts, no options that the tests do not use, and all
randomness (noise, masks, time steps) comes in as an argument. Nothing outside ``tests/`` imports
them.
"""
