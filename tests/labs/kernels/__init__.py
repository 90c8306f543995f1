"""Three machines with real Linux kernels of their own, on one machine (user-mode Linux)."""
