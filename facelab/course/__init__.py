"""What the notebooks lean on: how they begin, checks of the exercises, sliders and 3D views."""
