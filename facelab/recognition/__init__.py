"""Who is it? Two recognition networks, the alignment they want, and their weights."""
