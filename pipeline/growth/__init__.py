"""Growing a model: plans, the maps between widths, and the methods that choose them."""
