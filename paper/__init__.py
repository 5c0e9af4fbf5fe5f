"""From attempts files to the paper's tables, figures and diagnostics."""
