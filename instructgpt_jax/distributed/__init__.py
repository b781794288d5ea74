"""Meshes and processes: how one program runs on many devices."""
