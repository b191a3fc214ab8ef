"""From a surface to a picture: rasterizer, maps of what each pixel sees, light, colour."""
