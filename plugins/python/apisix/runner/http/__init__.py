"""What plugins see of HTTP."""
