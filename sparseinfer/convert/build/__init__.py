"""What takes the place of layers, and what that needs of the modules around them."""
