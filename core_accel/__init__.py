"""Mechanism of umvm: seccomp filter, launch of the guest, listener threads, guest memory.

Nothing here knows a module, a path or a policy. Import the submodules; the package exports nothing.
"""
