"""``hpedge bench``: how fast a bundle is here, what it takes, and under which conditions that was measured."""
