"""facelab: a small library under a course on inverse face rendering.

Conventions are on one page: docs/conventions.md.
"""
