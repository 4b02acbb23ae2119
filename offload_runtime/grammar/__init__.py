"""Replies of a given form: masks of the tokens that a JSON schema allows after each node of a tree, by llguidance."""
