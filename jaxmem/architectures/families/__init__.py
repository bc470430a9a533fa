"""Readers of config.json: what each published family says, in the words of a configuration."""
