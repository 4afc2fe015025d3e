"""Runs plugins written in Python for Portcullis and Apache APISIX. `cli` is where it starts."""

__version__ = "0.1.0"
