"""What plugins are."""
