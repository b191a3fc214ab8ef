"""The morphable model, its file, named parameter vectors, and what describes a face with them."""
