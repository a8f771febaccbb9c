"""What a score is made of: rows, clusters, segments, components; and what that amounts to, in words."""
