"""Load the models, then generate: the facade and the decode loop."""
