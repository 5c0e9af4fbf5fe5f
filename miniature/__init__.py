"""The paper in miniature: a small world in which the best possible pass@K is known."""
