"""Lines of a job: the forms in which they ask and are answered. Nothing does I/O."""
