"""Figures, each with its command. Never imported by the product."""
