"""Speed, beside peers and floors."""
