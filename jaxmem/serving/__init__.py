"""Many prompts answered at once, out of one pool of pages."""
