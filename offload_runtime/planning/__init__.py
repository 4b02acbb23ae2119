"""From the user's options to a plan and a prediction. Imports no torch."""
