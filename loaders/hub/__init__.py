"""The Hugging Face hub: names, its local cache, what a run needs of a repository, downloads. Imports no torch."""
