"""KV rows of texts on disk: a text that begins like one of an earlier run reads only the rest."""
