"""From what the user asks for to a plan and a prediction. Imports no torch."""
