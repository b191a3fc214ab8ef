"""Faces drawn at random and rendered: distributions, degradations, and corpora to train on."""
