"""What made parts of drift and is not installed with it."""
