"""The Hugging Face hub: names, its local cache, the files a run needs, downloads. Imports no torch."""
