"""``rdpnet bench``: the paper's tables, and what is used today, measured side by side on this machine."""
