"""How good a trained model is: baselines and the table that compares it with them."""
