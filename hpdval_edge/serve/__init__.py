"""``hpedge serve``: a bundle behind HTTP, and one page to look at it."""
