"""Linear attention that branches: each node of a tree follows the states along its own path."""
