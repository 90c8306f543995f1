"""A node from nothing to running (`standfast setup`), and back (`standfast uninstall`)."""
