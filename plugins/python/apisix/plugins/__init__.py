"""The plugins of a runner that was told no other directory: every module here is imported at the start."""
