"""Cameras, rotations, meshes and their subdivision: pure functions on tensors."""
