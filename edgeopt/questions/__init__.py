"""What else could be: strategies side by side, the price of limits and of other decisions, two plans compared."""
