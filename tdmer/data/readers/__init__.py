"""Readers for the files people have."""
